package gcesim

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"flag"
	"go/build"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write discovery.json.gz anew")

// The methods that the simulator has.
var simulated = []string{
	"instances.insert", "instances.get", "instances.delete", "instances.list", "instances.stop", "instances.start",
	"zoneOperations.get", "zones.list", "zones.get", "regions.list", "regions.get",
}

// TestDiscovery holds that what the simulator checks with is what the module
// of Google's client says.
func TestDiscovery(t *testing.T) {
	docs := map[string]*document{}
	for version, dir := range map[string]string{"v1": "v1", "alpha": "v0.alpha"} {
		docs[version] = extract(t, dir)
	}
	want, err := json.Marshal(docs)
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		var b bytes.Buffer
		zw, _ := gzip.NewWriterLevel(&b, gzip.BestCompression)
		if _, err := zw.Write(want); err != nil {
			t.Fatal(err)
		}
		if err := zw.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile("discovery.json.gz", b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	zr, err := gzip.NewReader(bytes.NewReader(discovery))
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(zr)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("discovery.json.gz is not of the version of google.golang.org/api in go.mod: run go generate ./provider/gce/gcesim\n" + cmp.Diff(string(got)[:2000], string(want)[:2000]))
	}
}

// extract reads a document and keeps what the simulated methods need.
func extract(t *testing.T, dir string) *document {
	t.Helper()
	pkg, err := build.Import("google.golang.org/api/compute/"+dir, ".", build.FindOnly)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(pkg.Dir, "compute-api.json"))
	if err != nil {
		t.Fatal(err)
	}
	var all struct {
		Revision   string
		Parameters map[string]*schema
		Schemas    map[string]*schema
		Resources  map[string]struct{ Methods map[string]*method }
	}
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	d := &document{Revision: all.Revision, Parameters: all.Parameters, Methods: map[string]*method{}, Schemas: map[string]*schema{}}
	var keep func(s *schema)
	keep = func(s *schema) {
		if s == nil {
			return
		}
		if s.Ref != "" && d.Schemas[s.Ref] == nil {
			d.Schemas[s.Ref] = all.Schemas[s.Ref]
			keep(all.Schemas[s.Ref])
		}
		keep(s.Items)
		keep(s.Additional)
		for _, p := range s.Properties {
			keep(p)
		}
	}
	for _, id := range simulated {
		resource, name, _ := strings.Cut(id, ".")
		m := all.Resources[resource].Methods[name]
		if m == nil {
			t.Fatalf("%s has no method %s", dir, id)
		}
		d.Methods["compute."+id] = m
		keep(m.Request)
		keep(m.Response)
	}
	return d
}
