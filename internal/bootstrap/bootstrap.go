// Package bootstrap fills in the script that turns a machine into a bot. Who
// hands one out and who only reads one agree here on what it may name.
package bootstrap

import (
	"io"
	"text/template"
)

// Data is what a script may name. Whoever hands one out quotes every value for
// the script's language.
type Data struct {
	Server, Token, TLSCA string
	Code                 []Code
	Unit                 string // of systemd, in the script's variables; see package unit
}

// Code is the bot code for a platform.
type Code struct{ OS, Arch, Digest string }

// Fill writes text, a template, with the values of data. Its errors begin with
// name and tell the line.
func Fill(w io.Writer, name, text string, data Data) error {
	t, err := template.New(name).Option("missingkey=error").Parse(text)
	if err != nil {
		return err
	}
	return t.Execute(w, data)
}
