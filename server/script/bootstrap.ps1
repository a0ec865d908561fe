# Turns this machine into a bot of {{.Server}}.
#
#   powershell -File bootstrap.ps1 [-Dir DIR] [-Id ID] [-Service | -AtLogin] [-Print]
#
# Without -Service or -AtLogin the bot runs here until it is ended.
param([string]$Dir = "$PWD\skep-bot", [string]$Id = '', [switch]$Service, [switch]$AtLogin, [switch]$Print)
$ErrorActionPreference = 'Stop'
$server = {{.Server}}
$token = {{.Token}}
$arch = if ($env:PROCESSOR_ARCHITECTURE -eq 'ARM64') { 'arm64' } else { 'amd64' }
$digests = @{
{{- range .Code}}{{if eq .OS "windows"}}
	'{{.Arch}}' = {{.Digest}}
{{- end}}{{end}}
}
if (-not $digests.ContainsKey($arch)) { throw "the server has no bot for windows/$arch" }
$digest = $digests[$arch]
$exe = Join-Path $Dir 'swarming_bot.exe'
$run = "`"$exe`" start_slave"
$serve = "`"$exe`" service"
$create = "sc.exe create skep-bot binPath= '$serve' start= auto"
$task = "schtasks.exe /Create /F /SC ONLOGON /TN skep-bot /TR '$run'"
if ($Print) {
	if ($Service) { $create } elseif ($AtLogin) { $task } else { $run }
	exit 0
}
New-Item -ItemType Directory -Force -Path $Dir | Out-Null
icacls.exe $Dir /inheritance:r /grant:r "$($env:USERNAME):(OI)(CI)F" 'SYSTEM:(OI)(CI)F' 'Administrators:(OI)(CI)F' | Out-Null
if (-not (Test-Path $exe)) {
	$tmp = Join-Path $Dir "bootstrap.$PID.tmp"
	Invoke-WebRequest -UseBasicParsing -Uri "$server/swarming/api/v1/bot/bot_code/$digest" -OutFile $tmp
	if ((Get-FileHash -Algorithm SHA256 $tmp).Hash.ToLower() -ne $digest) {
		Remove-Item $tmp
		throw "what $server sends is not the bot that it promised; nothing was started"
	}
	Move-Item $tmp $exe
}
if ($token) { # a bot whose own credential is still good removes it unused
	Set-Content -NoNewline -Path (Join-Path $Dir 'bootstrap.tok') -Value $token
}
if ($Id) { [Environment]::SetEnvironmentVariable('SWARMING_BOT_ID', $Id, $(if ($Service) { 'Machine' } else { 'User' })); $env:SWARMING_BOT_ID = $Id }
if ($Service) {
	sc.exe create skep-bot binPath= $serve start= auto
	sc.exe failure skep-bot reset= 86400 actions= restart/2000
	sc.exe start skep-bot
} elseif ($AtLogin) {
	schtasks.exe /Create /F /SC ONLOGON /TN skep-bot /TR $run
} else {
	while ($true) {
		& $exe start_slave
		if ($LASTEXITCODE -eq 0) { break }
		Start-Sleep -Seconds 2
	}
}
