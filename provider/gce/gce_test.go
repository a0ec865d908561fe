package gce_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"go.uber.org/goleak"

	"github.com/skepdev/skep/provider"
	"github.com/skepdev/skep/provider/gce"
	"github.com/skepdev/skep/provider/gce/gcesim"
	"github.com/skepdev/skep/provider/providertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var scope = provider.Scope{Project: "lab", Zone: "us-central1-b"}

func attributes() provider.Attributes {
	return provider.Attributes{
		Project: scope.Project, Zone: scope.Zone, MachineType: "zones/{{.Zone}}/machineTypes/n1-standard-4",
		Disks:    []provider.Disk{{Image: "projects/images/global/images/bot-7", SizeGB: 50, Type: "zones/{{.Zone}}/diskTypes/pd-ssd", Interface: "SCSI"}},
		Networks: []provider.NetworkInterface{{Network: "global/networks/default", External: 1}},
	}
}

func order(name string) provider.Order {
	return provider.Order{RequestID: uuid.NewString(), Name: name, Zone: scope.Zone, Attributes: attributes(), Labels: map[string]string{provider.LabelVM: name}}
}

func client(t *testing.T, carrier http.RoundTripper) *gce.Provider {
	t.Helper()
	p, err := gce.New(t.Context(), gce.Options{Transport: carrier})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func subject(p provider.Provider) providertest.Subject {
	bad := order("bad")
	bad.Attributes.Disks = nil
	return providertest.Subject{Provider: p, Scope: scope, Order: provider.Order{Zone: scope.Zone, Attributes: attributes()}, Bad: bad, Every: time.Second}
}

func TestSuite(t *testing.T) {
	providertest.Run(t, providertest.Suite{Bubble: true, Fresh: func(t *testing.T) providertest.Subject {
		sim := gcesim.New(gcesim.Options{Check: true, Settings: gcesim.Settings{Insert: 20 * time.Second, Delete: 10 * time.Second, Spread: 10 * time.Second}})
		return subject(client(t, sim.Transport()))
	}})
}

// TestSuiteOverHTTP has a real connection, as the simulator that is a process.
func TestSuiteOverHTTP(t *testing.T) {
	providertest.Run(t, providertest.Suite{Fresh: func(t *testing.T) providertest.Subject {
		srv := httptest.NewServer(gcesim.New(gcesim.Options{Check: true}))
		carrier := &http.Transport{}
		t.Cleanup(func() { carrier.CloseIdleConnections(); srv.Close() })
		p, err := gce.New(t.Context(), gce.Options{Endpoint: srv.URL, Transport: carrier})
		if err != nil {
			t.Fatal(err)
		}
		s := subject(p)
		s.Every = time.Millisecond
		return s
	}})
}

// sent keeps the bodies of requests, and answers each with an operation.
type sent struct{ path, body string }

func (s *sent) RoundTrip(r *http.Request) (*http.Response, error) {
	body, _ := io.ReadAll(r.Body)
	s.path, s.body = r.URL.Path, strings.TrimSpace(string(body))
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(`{"status":"DONE"}`)), Request: r}, nil
}

// TestAttributes holds spec/provider.md §2.4: what each attribute is sent as.
func TestAttributes(t *testing.T) {
	const head = `{"labels":{},"machineType":"m","name":"vm"`
	tests := map[string]struct {
		a      provider.Attributes
		device string
		path   string // "" = v1
		want   string
	}{
		"machine type in its zone": {a: provider.Attributes{MachineType: "zones/{{.Zone}}/machineTypes/x"}, want: `{"labels":{},"machineType":"zones/us-central1-b/machineTypes/x","name":"vm"}`},
		"platform and tags":        {a: provider.Attributes{MachineType: "m", MinCPUPlatform: "Intel Skylake", Tags: []string{"a", "b"}}, want: `{"labels":{},"machineType":"m","minCpuPlatform":"Intel Skylake","name":"vm","tags":{"items":["a","b"]}}`},
		"disks": {
			a: provider.Attributes{MachineType: "m", Disks: []provider.Disk{
				{Image: "i", SizeGB: 10, Type: "zones/{{.Zone}}/diskTypes/pd-ssd", Interface: "SCSI", IOPS: -1},
				{Type: "zones/{{.Zone}}/diskTypes/local-ssd", Interface: "NVME"},
				{SizeGB: 20, Type: "zones/{{.Zone}}/diskTypes/hyperdisk-balanced", IOPS: 3000, ThroughputM: 140},
			}},
			want: `{"disks":[{"autoDelete":true,"boot":true,"initializeParams":{"diskSizeGb":"10","diskType":"zones/us-central1-b/diskTypes/pd-ssd","sourceImage":"i"},"interface":"SCSI"},` +
				`{"autoDelete":true,"initializeParams":{"diskType":"zones/us-central1-b/diskTypes/local-ssd"},"interface":"NVME","type":"SCRATCH"},` +
				`{"autoDelete":true,"initializeParams":{"diskSizeGb":"20","diskType":"zones/us-central1-b/diskTypes/hyperdisk-balanced","provisionedIops":"3000","provisionedThroughput":"140"}}],"labels":{},"machineType":"m","name":"vm"}`,
		},
		"networks": {
			a:    provider.Attributes{MachineType: "m", Networks: []provider.NetworkInterface{{Network: "n", External: 1}, {Subnetwork: "s", StackType: "IPV4_IPV6"}}},
			want: head + `,"networkInterfaces":[{"accessConfigs":[{"type":"ONE_TO_ONE_NAT"}],"network":"n"},{"stackType":"IPV4_IPV6","subnetwork":"s"}]}`,
		},
		"metadata and device": {
			a: provider.Attributes{MachineType: "m", Metadata: []provider.Metadata{{Key: "k", Value: "a:b"}, {Key: "empty"}}}, device: "dut-1",
			want: `{"labels":{},"machineType":"m","metadata":{"items":[{"key":"k","value":"a:b"},{"key":"empty","value":""},{"key":"dut","value":"dut-1"}]},"name":"vm"}`,
		},
		"service accounts": {a: provider.Attributes{MachineType: "m", ServiceAccounts: []provider.ServiceAccount{{Email: "default", Scopes: []string{"s"}}}}, want: head + `,"serviceAccounts":[{"email":"default","scopes":["s"]}]}`},
		"node affinities": {
			a:    provider.Attributes{MachineType: "m", NodeAffinities: []provider.NodeAffinity{{Key: "k", Values: []string{"v"}}, {Key: "l", NotIn: true, Values: []string{"w"}}}},
			want: head + `,"scheduling":{"nodeAffinities":[{"key":"k","operator":"IN","values":["v"]},{"key":"l","operator":"NOT_IN","values":["w"]}]}}`,
		},
		"terminated on maintenance": {a: provider.Attributes{MachineType: "m", TerminateOnMaintenance: true}, want: head + `,"scheduling":{"onHostMaintenance":"TERMINATE"}}`},
		"confidential":              {a: provider.Attributes{MachineType: "m", Confidential: true}, want: `{"confidentialInstanceConfig":{"enableConfidentialCompute":true},"labels":{},"machineType":"m","name":"vm","scheduling":{"onHostMaintenance":"TERMINATE"}}`},
		"shielded":                  {a: provider.Attributes{MachineType: "m", NoVTPM: true}, want: head + `,"shieldedInstanceConfig":{"enableIntegrityMonitoring":true,"enableSecureBoot":false,"enableVtpm":false}}`},
		"labels":                    {a: provider.Attributes{MachineType: "m", Labels: map[string]string{"team": "x"}}, want: `{"labels":{"team":"x"},"machineType":"m","name":"vm"}`},
		"forced and null":           {a: provider.Attributes{MachineType: "m", ForceSendFields: []string{"CanIpForward"}, NullFields: []string{"Tags"}}, want: `{"canIpForward":false,"labels":{},"machineType":"m","name":"vm","tags":null}`},
		"beta is stable":            {a: provider.Attributes{MachineType: "m", Channel: "BETA", PerformanceMonitoring: "ENHANCED"}, want: head + `}`},
		"alpha": {
			a: provider.Attributes{MachineType: "m", Channel: "ALPHA", PerformanceMonitoring: "ENHANCED"}, path: "alpha",
			want: `{"advancedMachineFeatures":{"performanceMonitoringUnit":"ENHANCED"},"labels":{},"machineType":"m","name":"vm"}`,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := &sent{}
			tt.a.Project = "lab"
			done, err := client(t, s).Create(t.Context(), provider.Order{RequestID: uuid.NewString(), Name: "vm", Zone: scope.Zone, Attributes: tt.a, Device: tt.device})
			if !done || err != nil {
				t.Fatal(done, err)
			}
			if tt.path == "" {
				tt.path = "v1"
			}
			if want := "/compute/" + tt.path + "/projects/lab/zones/us-central1-b/instances"; s.path != want {
				t.Errorf("path is %s, want %s", s.path, want)
			}
			want := strings.ReplaceAll(tt.want, `"labels":{},`, "")
			if got := strings.ReplaceAll(s.body, `"labels":{},`, ""); got != want {
				t.Error(cmp.Diff(want, got))
			}
		})
	}
}

// TestForcedAndSet holds that a field that is to be null and has a value is told.
func TestForcedAndSet(t *testing.T) {
	o := order("vm")
	o.Attributes.Tags, o.Attributes.NullFields = []string{"a"}, []string{"Tags"}
	_, err := client(t, &sent{}).Create(t.Context(), o)
	wantClass(t, err, provider.Invalid)
}

func wantClass(t *testing.T, err error, want provider.Class) {
	t.Helper()
	_ = classed(t, err, want)
}

func classed(t *testing.T, err error, want provider.Class) *provider.Error {
	t.Helper()
	var e *provider.Error
	if !errors.As(err, &e) {
		t.Fatalf("error is %v, want class %s", err, want)
	}
	if e.Class != want {
		t.Errorf("class is %s (%v), want %s", e.Class, err, want)
	}
	return e
}

// answer answers everything with one text.
type answer struct {
	code int
	text string
}

func (a answer) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: a.code, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(a.text)), Request: r}, nil
}

func refusal(code int, reason, message string) answer {
	return answer{code, fmt.Sprintf(`{"error":{"code":%d,"message":%q,"errors":[{"message":%q,"domain":"global","reason":%q}]}}`, code, message, message, reason)}
}

func failed(code, message string) answer {
	return answer{http.StatusOK, fmt.Sprintf(`{"name":"op","status":"DONE","error":{"errors":[{"code":%q,"message":%q}]}}`, code, message)}
}

// TestClasses holds spec/provider.md §7.3 and §11.
func TestClasses(t *testing.T) {
	tests := map[string]struct {
		answer answer
		want   provider.Class
		done   bool
	}{
		"rate limit by reason":       {refusal(403, "rateLimitExceeded", "no"), provider.RateLimit, false},
		"rate limit of a user":       {refusal(403, "userRateLimitExceeded", "no"), provider.RateLimit, false},
		"rate limit by message":      {refusal(403, "forbidden", "Rate Limit Exceeded"), provider.RateLimit, false},
		"rate limit by another":      {refusal(403, "quotaExceeded", "Queries per user per 100 seconds of service"), provider.RateLimit, false},
		"too many":                   {refusal(429, "x", "slow down"), provider.Transient, false},
		"internal":                   {refusal(500, "backendError", "oops"), provider.Transient, false},
		"a proxy's words":            {answer{502, "<html>bad gateway</html>"}, provider.Transient, false},
		"not JSON":                   {answer{200, "<html>hello</html>"}, provider.Transient, false},
		"permission":                 {refusal(403, "forbidden", "Required 'compute.instances.create' permission"), provider.Permission, false},
		"unauthorized":               {refusal(401, "authError", "no"), provider.Permission, false},
		"quota":                      {refusal(403, "quotaExceeded", "Quota 'CPUS' exceeded"), provider.Quota, false},
		"invalid":                    {refusal(400, "invalid", "no"), provider.Invalid, false},
		"not ready":                  {refusal(400, "resourceNotReady", "no"), provider.Transient, false},
		"name taken":                 {refusal(409, "alreadyExists", "no"), provider.Conflict, false},
		"something else not there":   {refusal(404, "notFound", "no image"), provider.Invalid, false},
		"no room":                    {failed("ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS", "no"), provider.Exhausted, true},
		"quota in the operation":     {failed("QUOTA_EXCEEDED", "no"), provider.Quota, true},
		"image in the operation":     {failed("RESOURCE_NOT_FOUND", "no"), provider.Invalid, true},
		"rate limit in operation":    {failed("RATE_LIMIT_EXCEEDED", "no"), provider.RateLimit, true},
		"name taken in operation":    {failed("RESOURCE_ALREADY_EXISTS", "no"), provider.Conflict, true},
		"failure in the operation":   {failed("INTERNAL_ERROR", "no"), provider.Transient, true},
		"permission in operation":    {failed("PERMISSIONS_ERROR", "no"), provider.Permission, true},
		"unknown error in operation": {failed("UNSUPPORTED_OPERATION", "no"), provider.Invalid, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			done, err := client(t, tt.answer).Create(t.Context(), order("vm"))
			e := classed(t, err, tt.want)
			if done != tt.done {
				t.Errorf("done is %v, want %v", done, tt.done)
			}
			if tt.done && e.Code != 200 {
				t.Errorf("code is %d, want 200 of an operation", e.Code)
			}
		})
	}
}

// TestDeleteFails holds that what could not be taken away is not called gone.
func TestDeleteFails(t *testing.T) {
	done, err := client(t, failed("INTERNAL_ERROR", "no")).Delete(t.Context(), provider.Ref{Project: "lab", Zone: "z", Name: "vm"}, uuid.NewString())
	if done {
		t.Error("done")
	}
	wantClass(t, err, provider.Transient)
}

// TestLostAnswers holds that a cloud that loses answers makes one instance.
func TestLostAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim := gcesim.New(gcesim.Options{History: true, Settings: gcesim.Settings{Insert: 30 * time.Second, Delete: 30 * time.Second, Slow: time.Minute}})
		p := client(t, sim.Transport())
		for n, fault := range []gcesim.Fault{gcesim.LostAnswer, gcesim.Garbled, gcesim.LostRequest, gcesim.Slow, gcesim.Unavailable} {
			o := order(fmt.Sprintf("vm-%d", n))
			sim.Set(func(s *gcesim.Settings) { s.Faults = map[gcesim.Fault]float64{fault: 1} })
			_, err := p.Create(t.Context(), o)
			wantClass(t, err, provider.Transient)
			sim.Set(func(s *gcesim.Settings) { s.Faults = nil })
			wait(t, func() (bool, error) { return p.Create(t.Context(), o) })
			if _, err := p.Get(t.Context(), provider.Ref{Project: "lab", Zone: scope.Zone, Name: o.Name}); err != nil {
				t.Error(fault, err)
			}
		}
		if made := sim.Made(); len(made) != 5 {
			t.Errorf("%d were made, want 5: %+v", len(made), made)
		}
	})
}

func wait(t *testing.T, look func() (bool, error)) {
	t.Helper()
	for range 100 {
		done, err := look()
		if err != nil {
			t.Fatal(err)
		}
		if done {
			return
		}
		time.Sleep(time.Second) // of the bubble
	}
	t.Fatal("not done")
}

// TestForgotten holds that another process follows what one has begun.
func TestForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim := gcesim.New(gcesim.Options{Settings: gcesim.Settings{Insert: time.Minute}})
		o := order("vm")
		for range 3 {
			if done, err := client(t, sim.Transport()).Create(t.Context(), o); done || err != nil {
				t.Fatal(done, err)
			}
		}
		time.Sleep(2 * time.Minute)
		if done, err := client(t, sim.Transport()).Create(t.Context(), o); !done || err != nil {
			t.Fatal(done, err)
		}
		if n := len(sim.Made()); n != 1 {
			t.Errorf("%d instances, want 1", n)
		}
	})
}

func TestZonesAndQuotas(t *testing.T) {
	sim := gcesim.New(gcesim.Options{Check: true, Settings: gcesim.Settings{Quota: map[string]float64{"CPUS": 100}}})
	p := client(t, sim.Transport())
	if done, err := p.Create(t.Context(), order("vm")); !done || err != nil {
		t.Fatal(done, err)
	}
	zones, err := p.Zones(t.Context(), "lab")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(gcesim.DefaultZones, zones); diff != "" {
		t.Error(diff)
	}
	got, err := p.Quotas(t.Context(), "lab", []string{"us-central1", "nowhere", "us-east1"})
	if err != nil {
		t.Fatal(err)
	}
	want := []provider.Allowance{
		{Region: "us-central1", Metric: "CPUS", Limit: 100, Usage: 4},
		{Region: "us-central1", Metric: "INSTANCES", Limit: 1e6, Usage: 1},
		{Region: "us-central1", Metric: "IN_USE_ADDRESSES", Limit: 1e6, Usage: 1},
		{Region: "us-east1", Metric: "CPUS", Limit: 100},
		{Region: "us-east1", Metric: "INSTANCES", Limit: 1e6},
		{Region: "us-east1", Metric: "IN_USE_ADDRESSES", Limit: 1e6},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestPlaces holds that no other URL is asked for than that of an instance.
func TestPlaces(t *testing.T) {
	p := client(t, answer{500, "asked"})
	for _, r := range []provider.Ref{{}, {Project: "p", Zone: "z"}, {Project: "p", Name: "n"}, {Project: "a/b", Zone: "z", Name: "n"}, {Project: "p", Zone: "z", Name: "../n"}} {
		_, err := p.Get(context.Background(), r)
		wantClass(t, err, provider.Invalid)
		_, err = p.Delete(context.Background(), r, uuid.NewString())
		wantClass(t, err, provider.Invalid)
	}
}

// TestLongAnswer holds that an answer without end is not read whole.
func TestLongAnswer(t *testing.T) {
	_, err := client(t, endless{}).Get(t.Context(), provider.Ref{Project: "p", Zone: "z", Name: "n"})
	wantClass(t, err, provider.Transient)
}

type endless struct{}

func (endless) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(io.MultiReader(strings.NewReader(`{"name":"`), spaces{})), Request: r}, nil
}

type spaces struct{}

func (spaces) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}
