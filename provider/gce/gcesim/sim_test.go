package gcesim

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const zoneURL = "/compute/v1/projects/lab/zones/us-central1-b"

// valid is a body that everything is right with.
func valid(name string) map[string]any {
	return map[string]any{
		"name": name, "machineType": "zones/us-central1-b/machineTypes/n1-standard-2",
		"disks": []any{
			map[string]any{"boot": true, "autoDelete": true, "initializeParams": map[string]any{"sourceImage": "global/images/bot", "diskSizeGb": "20", "diskType": "zones/us-central1-b/diskTypes/pd-ssd"}},
			map[string]any{"type": "SCRATCH", "autoDelete": true, "initializeParams": map[string]any{"diskType": "zones/us-central1-b/diskTypes/local-ssd"}},
		},
		"networkInterfaces": []any{map[string]any{"network": "global/networks/default", "accessConfigs": []any{map[string]any{"type": "ONE_TO_ONE_NAT"}}}},
		"metadata":          map[string]any{"items": []any{map[string]any{"key": "k", "value": ""}}},
		"labels":            map[string]any{"skep-vm": name, "skep-provider": "0123456789abcdef"},
		"serviceAccounts":   []any{map[string]any{"email": "default", "scopes": []any{"https://www.googleapis.com/auth/cloud-platform"}}},
	}
}

type world struct {
	*testing.T
	sim *Sim
}

// ask makes one call; the answer is that of an error when code is not 200.
func (w world) ask(method, path string, body any) (code int, answer map[string]any) {
	w.Helper()
	code, text := w.raw(method, path, body)
	if err := json.Unmarshal(text, &answer); err != nil {
		w.Fatalf("%s %s: %v in %s", method, path, err, text)
	}
	return code, answer
}

func (w world) raw(method, path string, body any) (int, []byte) {
	w.Helper()
	var in io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			w.Fatal(err)
		}
		in = bytes.NewReader(text)
	}
	r, err := http.NewRequest(method, "http://sim"+path, in)
	if err != nil {
		w.Fatal(err)
	}
	res, err := w.sim.Transport().RoundTrip(r)
	if err != nil {
		w.Fatal(err)
	}
	text, err := io.ReadAll(res.Body)
	if err != nil {
		w.Fatal(err)
	}
	return res.StatusCode, text
}

func (w world) must(method, path string, body any) map[string]any {
	w.Helper()
	code, answer := w.ask(method, path, body)
	if code != http.StatusOK {
		w.Fatalf("%s %s: %d %v", method, path, code, answer)
	}
	return answer
}

func (w world) refused(want int, reason, method, path string, body any) {
	w.Helper()
	code, answer := w.ask(method, path, body)
	if got := reasonOf(answer); code != want || got != reason {
		w.Errorf("%s %s: %d %s, want %d %s: %v", method, path, code, got, want, reason, answer)
	}
}

func reasonOf(answer map[string]any) string {
	errs := list(object(answer["error"])["errors"])
	if len(errs) == 0 {
		return ""
	}
	return text(object(errs[0])["reason"])
}

func failedOf(op map[string]any) string {
	errs := list(object(op["error"])["errors"])
	if len(errs) == 0 {
		return ""
	}
	return text(object(errs[0])["code"])
}

func insertURL(id string) string { return zoneURL + "/instances?requestId=" + id }

func TestRefusals(t *testing.T) {
	set := func(path string, v any) func(map[string]any) {
		return func(body map[string]any) {
			parts := strings.Split(path, ".")
			for _, p := range parts[:len(parts)-1] {
				if l, ok := body[p].([]any); ok {
					body = object(l[0])
				} else {
					if body[p] == nil {
						body[p] = map[string]any{}
					}
					body = object(body[p])
				}
			}
			if last := parts[len(parts)-1]; v == nil {
				delete(body, last)
			} else {
				body[last] = v
			}
		}
	}
	many := func(n int, f func(int) any) (l []any) {
		for i := range n {
			l = append(l, f(i))
		}
		return l
	}
	labels := map[string]any{}
	for i := range 65 {
		labels[fmt.Sprintf("l%d", i)] = ""
	}
	meta := func(key, value string) map[string]any { return map[string]any{"key": key, "value": value} }
	tests := map[string]struct {
		change func(map[string]any)
		reason string // "" = accepted
	}{
		"nothing wrong":                {func(map[string]any) {}, ""},
		"unknown field":                {set("colour", "red"), "invalid"},
		"unknown field below":          {set("disks.colour", "red"), "invalid"},
		"no name":                      {set("name", nil), "required"},
		"name in capitals":             {set("name", "Vm"), "invalid"},
		"name ends in a dash":          {set("name", "vm-"), "invalid"},
		"name of 64":                   {set("name", strings.Repeat("a", 64)), "invalid"},
		"name of 63":                   {set("name", strings.Repeat("a", 63)), ""},
		"name is a number":             {set("name", 7), "invalid"},
		"name is null":                 {func(b map[string]any) { b["name"] = json.RawMessage("null") }, "required"},
		"what is read only is unheard": {set("status", "TERMINATED"), ""},
		"full URL":                     {set("machineType", "https://www.googleapis.com/compute/v1/projects/p/zones/us-central1-b/machineTypes/n1-standard-2"), ""},
		"no machine type":              {set("machineType", nil), "required"},
		"machine type of another zone": {set("machineType", "zones/us-central1-c/machineTypes/n1-standard-2"), "invalid"},
		"machine type by name":         {set("machineType", "n1-standard-2"), "invalid"},
		"no disks":                     {set("disks", nil), "invalid"},
		"nothing to boot from":         {set("disks.initializeParams.sourceImage", nil), "invalid"},
		"first disk does not boot":     {set("disks.boot", false), "invalid"},
		"image by name":                {set("disks.initializeParams.sourceImage", "bot"), "invalid"},
		"image family":                 {set("disks.initializeParams.sourceImage", "projects/p/global/images/family/bot"), ""},
		"small disk":                   {set("disks.initializeParams.diskSizeGb", "9"), "invalid"},
		"size is a number":             {set("disks.initializeParams.diskSizeGb", 10), ""},
		"size is a word":               {set("disks.initializeParams.diskSizeGb", "ten"), "invalid"},
		"disk type of another zone":    {set("disks.initializeParams.diskType", "zones/us-central1-c/diskTypes/pd-ssd"), "invalid"},
		"IOPS where none are":          {set("disks.initializeParams.provisionedIops", "100"), "invalid"},
		"interface of no kind":         {set("disks.interface", "SATA"), "invalid"},
		"interface":                    {set("disks.interface", "NVME"), ""},
		"scratch to boot from":         {set("disks.type", "SCRATCH"), "invalid"},
		"boots no":                     {set("disks.boot", "no"), "invalid"},
		"no network":                   {set("networkInterfaces", []any{}), "invalid"},
		"network by name":              {set("networkInterfaces.network", "default"), "invalid"},
		"subnetwork elsewhere":         {set("networkInterfaces.subnetwork", "regions/us-east1/subnetworks/s"), "invalid"},
		"subnetwork":                   {set("networkInterfaces.subnetwork", "regions/us-central1/subnetworks/s"), ""},
		"stack type":                   {set("networkInterfaces.stackType", "IPV5"), "invalid"},
		"two addresses":                {set("networkInterfaces.accessConfigs", many(2, func(int) any { return map[string]any{"type": "ONE_TO_ONE_NAT"} })), "invalid"},
		"address of IPv6":              {set("networkInterfaces.accessConfigs", many(1, func(int) any { return map[string]any{"type": "DIRECT_IPV6"} })), "invalid"},
		"metadata key":                 {set("metadata.items", []any{meta("a b", "")}), "invalid"},
		"metadata without key":         {set("metadata.items", []any{map[string]any{"value": ""}}), "required"},
		"metadata without value":       {set("metadata.items", []any{map[string]any{"key": "k"}}), "required"},
		"metadata twice":               {set("metadata.items", []any{meta("a", ""), meta("a", "")}), "invalid"},
		"large value":                  {set("metadata.items", []any{meta("a", strings.Repeat("x", 262145))}), "invalid"},
		"largest value":                {set("metadata.items", []any{meta("a", strings.Repeat("x", 262144))}), ""},
		"much metadata":                {set("metadata.items", []any{meta("a", strings.Repeat("x", 262144)), meta("b", strings.Repeat("x", 262144))}), "invalid"},
		"tag":                          {set("tags.items", []any{"-"}), "invalid"},
		"tag twice":                    {set("tags.items", []any{"a", "a"}), "invalid"},
		"many tags":                    {set("tags.items", many(65, func(i int) any { return fmt.Sprintf("t%d", i) })), "invalid"},
		"label key":                    {set("labels", map[string]any{"Key": "v"}), "invalid"},
		"label value":                  {set("labels", map[string]any{"key": "Value"}), "invalid"},
		"label of a number":            {set("labels", map[string]any{"key": 1}), "invalid"},
		"many labels":                  {set("labels", labels), "invalid"},
		"two accounts":                 {set("serviceAccounts", many(2, func(int) any { return map[string]any{"email": "default"} })), "invalid"},
		"account by name":              {set("serviceAccounts.email", "bot"), "invalid"},
		"confidential and migrated":    {set("confidentialInstanceConfig", map[string]any{"enableConfidentialCompute": true}), "invalid"},
		"maintenance of no kind":       {set("scheduling.onHostMaintenance", "PANIC"), "invalid"},
		"affinity of no kind":          {set("scheduling.nodeAffinities", []any{map[string]any{"key": "k", "operator": "NEAR", "values": []any{"v"}}}), "invalid"},
		"affinity without values":      {set("scheduling.nodeAffinities", []any{map[string]any{"key": "k", "operator": "IN"}}), "invalid"},
		"monitoring of no kind":        {set("advancedMachineFeatures.performanceMonitoringUnit", "MUCH"), "invalid"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := world{t, New(Options{Check: true})}
			body := valid("vm")
			tt.change(body)
			if tt.reason == "" {
				w.must("POST", insertURL(uuid.NewString()), body)
				w.must("GET", zoneURL+"/instances/"+text(body["name"]), nil)
				return
			}
			w.refused(400, tt.reason, "POST", insertURL(uuid.NewString()), body)
			if len(w.sim.Made()) != 0 {
				t.Error("it was made all the same")
			}
		})
	}
}

func TestRefusedRequests(t *testing.T) {
	w := world{t, New(Options{Check: true, Projects: []string{"lab", "closed"}})}
	w.sim.Set(func(s *Settings) { s.Denied = []string{"closed"} })
	w.refused(400, "invalid", "POST", insertURL("7"), valid("vm"))
	w.refused(400, "invalid", "POST", insertURL("00000000-0000-0000-0000-000000000000"), valid("vm"))
	w.refused(400, "invalid", "POST", zoneURL+"/instances?colour=red", valid("vm"))
	w.refused(400, "parseError", "POST", zoneURL+"/instances", nil)
	w.refused(400, "invalid", "POST", zoneURL+"/instances", []any{})
	w.refused(400, "invalid", "GET", zoneURL+"/instances", map[string]any{"name": "x"})
	w.refused(400, "invalid", "GET", zoneURL+"/instances?maxResults=501", nil)
	w.refused(400, "invalid", "GET", zoneURL+"/instances?maxResults=-1", nil)
	w.refused(400, "invalid", "GET", zoneURL+"/instances?pageToken=!", nil)
	w.refused(400, "invalidParameter", "GET", zoneURL+"/instances?fields=items/colour", nil)
	w.refused(400, "invalidParameter", "GET", zoneURL+"/instances?fields=items(", nil)
	w.refused(501, "notSimulated", "GET", zoneURL+"/instances?filter=name:x", nil)
	w.refused(400, "invalid", "GET", "/compute/v1/projects/lab/zones/moon-b/instances", nil)
	w.refused(400, "invalid", "GET", "/compute/v1/projects/LAB/zones/us-central1-b/instances", nil)
	w.refused(404, "notFound", "GET", "/compute/v1/projects/other/zones/us-central1-b/instances", nil)
	w.refused(403, "forbidden", "GET", "/compute/v1/projects/closed/zones/us-central1-b/instances", nil)
	w.refused(404, "notFound", "GET", zoneURL+"/instances/nobody", nil)
	w.refused(404, "notFound", "DELETE", zoneURL+"/instances/nobody", nil)
	w.refused(404, "notFound", "GET", zoneURL+"/operations/operation-1", nil)
	w.refused(404, "notFound", "PATCH", zoneURL+"/instances/nobody", nil)
	if n := w.sim.Counts()["compute.instances.get 404 notFound"]; n != 1 {
		t.Errorf("counted %d, want 1", n)
	}
}

// TestRequestMemory holds that an id means one operation for 24 hours.
func TestRequestMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world{t, New(Options{Check: true, History: true, Settings: Settings{Insert: time.Minute, Delete: time.Minute}})}
		id, gone := uuid.NewString(), uuid.NewString()
		first := w.must("POST", insertURL(id), valid("vm"))
		w.refused(409, "alreadyExists", "POST", insertURL(uuid.NewString()), valid("vm"))
		w.refused(400, "resourceNotReady", "DELETE", zoneURL+"/instances/vm", nil)
		time.Sleep(2 * time.Minute)
		if op := w.must("GET", zoneURL+"/operations/"+text(first["name"]), nil); op["status"] != "DONE" {
			t.Errorf("operation is %v", op)
		}
		w.must("DELETE", zoneURL+"/instances/vm?requestId="+gone, nil)
		w.refused(400, "resourceNotReady", "DELETE", zoneURL+"/instances/vm?requestId="+uuid.NewString(), nil)
		time.Sleep(2 * time.Minute)
		w.refused(404, "notFound", "GET", zoneURL+"/instances/vm", nil)
		if again := w.must("POST", insertURL(strings.ToUpper(id)), valid("vm")); again["name"] != first["name"] || again["status"] != "DONE" {
			t.Errorf("another operation: %v, was %v", again, first)
		}
		w.refused(404, "notFound", "GET", zoneURL+"/instances/vm", nil)
		time.Sleep(24 * time.Hour)
		if again := w.must("POST", insertURL(id), valid("vm")); again["name"] == first["name"] {
			t.Error("remembered for more than 24 hours")
		}
		if len(w.sim.Made()) != 2 {
			t.Errorf("made %+v, want 2", w.sim.Made())
		}
	})
}

func TestQuotaAndRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world{t, New(Options{Check: true, Settings: Settings{Quota: map[string]float64{"CPUS": 4}, Insert: time.Second}})}
		insert := func(name string) string {
			op := w.must("POST", insertURL(uuid.NewString()), valid(name))
			time.Sleep(2 * time.Second)
			return failedOf(w.must("GET", zoneURL+"/operations/"+text(op["name"]), nil))
		}
		for n, want := range []string{"", "", "QUOTA_EXCEEDED"} { // two processors each
			if got := insert(fmt.Sprintf("vm-%d", n)); got != want {
				t.Errorf("instance %d ends with %q, want %q", n, got, want)
			}
		}
		w.refused(404, "notFound", "GET", zoneURL+"/instances/vm-2", nil)
		w.must("DELETE", zoneURL+"/instances/vm-0", nil)
		time.Sleep(time.Second)
		w.sim.Set(func(s *Settings) { s.Exhausted = []string{"us-central1-b"} })
		if got := insert("vm-3"); got != "ZONE_RESOURCE_POOL_EXHAUSTED" {
			t.Errorf("without room: %q", got)
		}
		w.sim.Set(func(s *Settings) { s.Exhausted, s.NoImages = nil, []string{"global/images/bot"} })
		if got := insert("vm-3"); got != "RESOURCE_NOT_FOUND" {
			t.Errorf("without image: %q", got)
		}
		w.sim.Set(func(s *Settings) { s.NoImages = nil })
		if got := insert("vm-3"); got != "" {
			t.Errorf("with quota given back: %q", got)
		}
	})
}

// What an instance is called while it is stopped and started, what it uses then,
// and what is refused.
func TestStopAndStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world{t, New(Options{Check: true, Settings: Settings{Stop: 10 * time.Second, Start: 20 * time.Second}})}
		body := valid("vm")
		body["disks"] = body["disks"].([]any)[:1]
		w.must("POST", insertURL(uuid.NewString()), body)
		w.must("POST", insertURL(uuid.NewString()), valid("local"))
		vm := zoneURL + "/instances/vm"
		is := func(status string, cpus float64) {
			t.Helper()
			if got := text(w.must("GET", vm, nil)["status"]); got != status {
				t.Errorf("it is %s, want %s", got, status)
			}
			for _, q := range list(w.must("GET", "/compute/v1/projects/lab/regions/us-central1", nil)["quotas"]) {
				if q := object(q); text(q["metric"]) == "CPUS" && q["usage"] != cpus+2 || text(q["metric"]) == "INSTANCES" && q["usage"] != 2.0 {
					t.Errorf("%s: it uses %v", status, q)
				}
			}
		}
		turn := func(what string) string { return vm + "/" + what + "?requestId=" + uuid.NewString() }
		is("RUNNING", 2)
		stop := turn("stop")
		op := w.must("POST", stop, nil)
		if again := w.must("POST", stop, nil); again["name"] != op["name"] || text(op["operationType"]) != "stop" {
			t.Errorf("another operation: %v, %v", op, again)
		}
		is("STOPPING", 2)
		w.refused(400, "resourceNotReady", "POST", turn("start"), nil)
		w.refused(400, "resourceNotReady", "DELETE", vm, nil)
		time.Sleep(10 * time.Second)
		is("TERMINATED", 0)
		if op := w.must("POST", turn("stop"), nil); text(op["status"]) != "DONE" {
			t.Errorf("stopped again: %v", op)
		}
		w.sim.Set(func(s *Settings) { s.Quota = map[string]float64{"CPUS": 3} })
		start := turn("start")
		w.must("POST", start, nil)
		is("PROVISIONING", 2)
		time.Sleep(20 * time.Second)
		if op := w.must("POST", start, nil); failedOf(op) != "QUOTA_EXCEEDED" {
			t.Errorf("without quota: %v", op)
		}
		is("TERMINATED", 0)
		w.sim.Set(func(s *Settings) { s.Quota = nil })
		w.must("POST", turn("start"), nil)
		is("PROVISIONING", 2)
		time.Sleep(11 * time.Second)
		is("STAGING", 2)
		time.Sleep(9 * time.Second)
		is("RUNNING", 2)
		if op := w.must("POST", turn("start"), nil); text(op["status"]) != "DONE" || failedOf(op) != "" {
			t.Errorf("started again: %v", op)
		}
		w.refused(400, "invalid", "POST", zoneURL+"/instances/local/stop", nil)
		w.refused(404, "notFound", "POST", zoneURL+"/instances/nobody/stop", nil)
		w.must("POST", turn("stop"), nil)
		time.Sleep(10 * time.Second)
		w.must("DELETE", vm, nil)
		w.refused(404, "notFound", "GET", vm, nil)
	})
}

func TestCallsPerMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world{t, New(Options{Settings: Settings{CallsPerMinute: 3}})}
		for range 3 {
			w.must("GET", zoneURL+"/instances", nil)
		}
		w.refused(403, "rateLimitExceeded", "GET", zoneURL+"/instances", nil)
		time.Sleep(time.Minute)
		w.must("GET", zoneURL+"/instances", nil)
		if n := w.sim.Calls(); n != 5 {
			t.Errorf("counted %d calls, want 5", n)
		}
	})
}

// TestConflict holds that the fault is no lie: the name is taken.
func TestConflict(t *testing.T) {
	w := world{t, New(Options{Check: true, Settings: Settings{Faults: map[Fault]float64{Conflict: 1}}})}
	w.refused(409, "alreadyExists", "POST", insertURL(uuid.NewString()), valid("vm"))
	if i := w.must("GET", zoneURL+"/instances/vm", nil); i["labels"] != nil || i["status"] != "RUNNING" {
		t.Errorf("who has the name is %v", i)
	}
}

// TestFaults holds that faults come as often as they shall, and the same again.
func TestFaults(t *testing.T) {
	run := func(seed uint64) map[string]int64 {
		sim := New(Options{Seed: seed, Settings: Settings{Faults: EveryFault(0.2)}})
		for n := range 2_000 {
			body, _ := json.Marshal(valid(fmt.Sprintf("vm-%d", n)))
			r, _ := http.NewRequest("POST", "http://sim"+zoneURL+"/instances", bytes.NewReader(body))
			if _, err := sim.Transport().RoundTrip(r); err != nil && err != io.ErrUnexpectedEOF {
				t.Fatal(err)
			}
		}
		return sim.Counts()
	}
	one, two, other := run(1), run(1), run(2)
	if !maps.Equal(one, two) {
		t.Error("the same seed gives other faults")
	}
	if maps.Equal(one, other) {
		t.Error("another seed gives the same faults")
	}
	total := int64(0)
	for f := range EveryFault(1) {
		n := one["fault "+string(f)]
		if n == 0 {
			t.Errorf("fault %s never happens", f)
		}
		total += n
	}
	if total < 330 || total > 470 {
		t.Errorf("%d faults in 2000 calls, want about 400", total)
	}
}

func TestPages(t *testing.T) {
	w := world{t, New(Options{Check: true})}
	for n := range 1203 {
		w.must("POST", zoneURL+"/instances", valid(fmt.Sprintf("vm-%04d", n)))
	}
	var names []string
	token := ""
	for {
		page := w.must("GET", zoneURL+"/instances?fields=nextPageToken,items(name,networkInterfaces/networkIP)&pageToken="+token, nil)
		for _, i := range list(page["items"]) {
			m := object(i)
			names = append(names, text(m["name"]))
			if len(m) != 2 || len(object(list(m["networkInterfaces"])[0])) != 1 {
				t.Fatalf("more than was selected: %v", m)
			}
		}
		if token == "" { // what goes between two pages disturbs nobody else
			w.must("DELETE", zoneURL+"/instances/vm-0499", nil)
			w.must("DELETE", zoneURL+"/instances/vm-0501", nil)
		}
		if token = text(page["nextPageToken"]); token == "" {
			break
		}
	}
	if len(names) != 1202 || !slices.IsSorted(names) || len(slices.Compact(names)) != 1202 {
		t.Errorf("%d names, want 1202 in order", len(names))
	}
}

// TestRepeatsChangeNothing plays random calls against a map, with repeats of
// old request ids between them.
func TestRepeatsChangeNothing(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		w := world{t, New(Options{Check: true})}
		type request struct{ method, path, name string }
		var past []request
		want := map[string]bool{}
		names := rapid.SampledFrom([]string{"a", "b", "c", "d"})
		send := func(q request) int {
			var body any
			if q.method == "POST" {
				body = valid(q.name)
			}
			code, _ := w.ask(q.method, q.path, body)
			return code
		}
		r.Repeat(map[string]func(*rapid.T){
			"insert": func(r *rapid.T) {
				name := names.Draw(r, "name")
				q := request{"POST", insertURL(uuid.NewString()), name}
				if code := send(q); (code == 409) != want[name] {
					r.Fatalf("insert %s: %d with %v", name, code, want)
				} else if code == 200 {
					past = append(past, q)
				}
				want[name] = true
			},
			"delete": func(r *rapid.T) {
				name := names.Draw(r, "name")
				q := request{"DELETE", zoneURL + "/instances/" + name + "?requestId=" + uuid.NewString(), name}
				if code := send(q); (code == 404) == want[name] {
					r.Fatalf("delete %s: %d with %v", name, code, want)
				} else if code == 200 {
					past = append(past, q)
				}
				delete(want, name)
			},
			"repeat": func(r *rapid.T) {
				if len(past) > 0 {
					if code := send(rapid.SampledFrom(past).Draw(r, "past")); code != 200 {
						r.Fatalf("repeat: %d", code)
					}
				}
			},
			"": func(r *rapid.T) {
				have := map[string]bool{}
				for _, i := range list(w.must("GET", zoneURL+"/instances", nil)["items"]) {
					have[text(object(i)["name"])] = true
				}
				if !maps.Equal(have, want) {
					r.Fatalf("have %v, want %v", have, want)
				}
			},
		})
	})
}

// TestSmall holds that an instance needs little memory: there may be 100,000.
func TestSmall(t *testing.T) {
	const n = 5_000 // of the 100,000: what one needs is the same
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	sim := New(Options{})
	fill(t, sim, n)
	per := (heap() - before) / n
	t.Logf("%d bytes for an instance", per)
	if per > 1200 {
		t.Errorf("%d bytes for an instance, want at most 1200", per)
	}
	runtime.KeepAlive(sim)
}

func fill(t testing.TB, sim *Sim, n int) {
	t.Helper()
	for i := range n {
		name := fmt.Sprintf("pool-%d-%04x", i, i*7919%65536)
		body, err := json.Marshal(valid(name))
		if err != nil {
			t.Fatal(err)
		}
		r, err := http.NewRequest("POST", "http://sim"+insertURL(uuid.NewString()), bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if res, err := sim.Transport().RoundTrip(r); err != nil || res.StatusCode != 200 {
			t.Fatal(res, err)
		}
	}
}

func BenchmarkInsert(b *testing.B) {
	sim := New(Options{})
	b.ReportAllocs()
	fill(b, sim, b.N)
}

// BenchmarkScan reads 100,000 instances, page by page.
func BenchmarkScan(b *testing.B) {
	sim := New(Options{})
	fill(b, sim, 100_000)
	for b.Loop() {
		for token := ""; ; {
			r, err := http.NewRequest("GET", "http://sim"+zoneURL+"/instances?fields=nextPageToken,items(id,name,selfLink,creationTimestamp,labels,networkInterfaces/networkIP)&pageToken="+token, nil)
			if err != nil {
				b.Fatal(err)
			}
			res, err := sim.Transport().RoundTrip(r)
			if err != nil {
				b.Fatal(err)
			}
			var page struct{ NextPageToken string }
			if err := json.NewDecoder(res.Body).Decode(&page); err != nil {
				b.Fatal(err)
			}
			if token = page.NextPageToken; token == "" {
				break
			}
		}
	}
}

// FuzzRequest holds that whatever comes is answered, within bounds, and that
// what an accepted request made can be read.
func FuzzRequest(f *testing.F) {
	body, err := json.Marshal(valid("vm"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add("POST", "v1/projects/lab/zones/us-central1-b/instances", "requestId=6a0f0ba3-13f8-5438-aefb-2bba20f9bfe1", body)
	f.Add("POST", "alpha/projects/lab/zones/us-central1-b/instances", "fields=name,status", body)
	f.Add("GET", "v1/projects/lab/zones/us-central1-b/instances", "maxResults=3&fields=items(name,labels/x),nextPageToken&pageToken=dm0", []byte(nil))
	f.Add("DELETE", "v1/projects/lab/zones/us-central1-b/instances/vm", "", []byte(nil))
	f.Add("GET", "v1/projects/lab/zones/us-central1-b/operations/operation-1000002", "alt=json&prettyPrint=false", []byte(nil))
	f.Add("GET", "v1/projects/lab/regions/us-central1", "", []byte(nil))
	f.Add("POST", "v1/projects/lab/zones/us-central1-b/instances", "", []byte(`{"name":"a","disks":[null,[]],"labels":{"a":null},"metadata":{"items":[{"key":"","value":null}]}}`))
	f.Fuzz(func(t *testing.T, method, path, query string, body []byte) {
		r, err := http.NewRequest(method, "http://sim/compute/", bytes.NewReader(body))
		if err != nil {
			return
		}
		r.URL.Path += path
		r.URL.RawQuery = query
		sim := New(Options{Check: true})
		res, err := sim.Transport().RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		answer, _ := io.ReadAll(res.Body)
		if res.StatusCode >= 300 && res.StatusCode < 400 || res.StatusCode == 405 { // the mux's own
			return
		}
		if !json.Valid(answer) {
			t.Fatalf("answer is no JSON: %q", answer)
		}
		for _, m := range sim.Made() {
			w := world{t, sim}
			w.must("GET", "/compute/v1/projects/"+m.Project+"/zones/"+m.Zone+"/instances/"+m.Name, nil)
		}
	})
}
