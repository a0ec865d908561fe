//go:build linux

package platform

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// machine makes a directory that looks like a machine's /.
func machine(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestLinuxMachine(t *testing.T) {
	root := machine(t, map[string]string{
		"etc/os-release":                                       "ID=debian\nVERSION_ID=\"12\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n",
		"etc/debian_version":                                   "12.11\n",
		"etc/hosts":                                            "127.0.0.1 localhost\n",
		"proc/cpuinfo":                                         "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R) CPU E5-2690 v4 @ 2.60GHz\nflags\t\t: fpu avx2\n\nprocessor\t: 1\nvendor_id\t: other\n",
		"proc/meminfo":                                         "MemTotal:       16777216 kB\nMemFree: 1 kB\n",
		"proc/mounts":                                          "proc /proc proc rw 0 0\n/dev/loop0 /snap/x squashfs ro 0 0\n",
		"proc/sys/kernel/osrelease":                            "6.1.0-28-amd64\n",
		"proc/uptime":                                          "1000.52 900.1\n",
		"dev/kvm":                                              "",
		".dockerenv":                                           "",
		"sys/block/sda/queue/rotational":                       "0\n",
		"sys/block/sda/size":                                   "1000\n",
		"sys/block/sdb/queue/rotational":                       "1\n",
		"sys/block/sdb/size":                                   "1000\n",
		"sys/block/loop0/queue/rotational":                     "0\n",
		"sys/block/loop0/size":                                 "8\n",
		"sys/class/drm/card0-HDMI-A-1/status":                  "connected\n",
		"sys/bus/pci/devices/0000:1/class":                     "0x030000\n",
		"sys/bus/pci/devices/0000:1/vendor":                    "0x10de\n",
		"sys/bus/pci/devices/0000:1/device":                    "0x104a\n",
		"sys/bus/pci/devices/0000:2/class":                     "0x040300\n",
		"sys/bus/pci/devices/0000:2/vendor":                    "0x8086\n",
		"sys/bus/pci/devices/0000:2/device":                    "0x1234\n",
		"sys/module/nvidia/version":                            "535.1\n",
		"usr/share/misc/pci.ids":                               "# list\n10de  NVIDIA Corporation\n\t104a  GeForce GT 610\n\t\t1043 84ab  Variant\n8086  Intel\nC 03  Display\n\t104a  Trap\n",
		"sys/class/thermal/thermal_zone0/temp":                 "45500\n",
		"var/run/reboot-required":                              "",
		"sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
		"sys/firmware/devicetree/base/compatible":              "google,sargo\x00,qcom",
	})
	p := New(t.Context(), Options{BotID: "b1", Dir: t.TempDir(), Root: root, Getenv: func(string) string { return "" }})
	<-p.Ready()
	got := p.Dimensions()
	want := map[string][]string{
		"os": {"Debian", "Debian-12", "Debian-12.11", "Linux"}, "gpu": {"10de", "10de:104a", "10de:104a-535.1"},
		"kernel": {"6.1.0-28-amd64"}, "kvm": {"1"}, "ssd": {"1"}, "inside_docker": {"1", "stock"},
		"display_attached": {"1"}, "gce": {"0"}, "cpu_governor": {"powersave"}, "device_tree_compatible": {"google", "qcom"},
		"id": {"b1"}, "pool": {"default"},
	}
	for k, v := range want {
		if d := cmp.Diff(v, got[k]); d != "" {
			t.Errorf("dimension %s (-want +got):\n%s", k, d)
		}
	}
	named := New(t.Context(), Options{BotID: "b1", Dir: t.TempDir(), Root: root, Getenv: func(name string) string {
		return map[string]string{envPools: "ci,lab"}[name]
	}})
	<-named.Ready()
	if d := cmp.Diff([]string{"ci", "lab"}, named.Dimensions()["pool"]); d != "" {
		t.Errorf("pools (-want +got):\n%s", d)
	}
	if got["locale"] != nil || got["python"] != nil {
		t.Errorf("dimensions %v, want neither locale nor python", got)
	}
	state := p.State()
	for k, v := range map[string]any{
		"ram": 16384, "ssd": []string{"sda"}, "uptime": 1000, "reboot_required": true,
		"gpu": []string{"NVIDIA Corporation GeForce GT 610"}, "audio": []string{"8086:1234"},
		"temp": map[string]float64{"thermal_zone0": 45.5}, "cpu_name": "Intel(R) Xeon(R) CPU E5-2690 v4 @ 2.60GHz",
		"disks": map[string]map[string]float64{},
	} {
		if d := cmp.Diff(v, state[k]); d != "" {
			t.Errorf("state %s (-want +got):\n%s", k, d)
		}
	}
}

func TestOSVersion(t *testing.T) {
	tests := []struct {
		name, release, debian string
		want                  string
	}{
		{"Ubuntu", "ID=ubuntu\nVERSION_ID=\"22.04\"\nVERSION=\"22.04.3 LTS (Jammy)\"\n", "bookworm/sid", "22.04.3"},
		{"Debian testing", "ID=debian\nPRETTY_NAME=\"Debian GNU/Linux trixie/sid\"\n", "trixie/sid", ""},
		{"Debian stable", "ID=debian\nVERSION_ID=\"12\"\n", "12.11", "12.11"},
		{"Arch", "ID=arch\n", "", ""},
		{"another's debian_version", "ID=mint\nVERSION_ID=21\n", "12.1", "21"},
	}
	for _, tt := range tests {
		if got := osVersion(parseRelease(tt.release), tt.debian); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestBareMachine(t *testing.T) {
	p := New(t.Context(), Options{BotID: "b1", Dir: t.TempDir(), Root: t.TempDir()})
	<-p.Ready()
	if got := p.Dimensions()["gpu"]; len(got) != 1 || got[0] != "none" {
		t.Errorf("gpu = %v, want none", got)
	}
	if got := p.State()["gpu"]; got.([]string) != nil {
		t.Errorf("state gpu = %v, want null", got)
	}
}
