// Package providertest is the suite that every Provider passes.
package providertest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/skepdev/skep/provider"
)

// Subject is a cloud under test.
type Subject struct {
	Provider provider.Provider
	Scope    provider.Scope
	// Order is something that the cloud can make. The suite gives it name,
	// request id and labels.
	Order provider.Order
	// Bad is something that the cloud refuses; the zero value = nothing is.
	Bad provider.Order
	// Every is how often the suite looks again; 0 = 20 ms.
	Every time.Duration
}

// Suite says how to get at a cloud.
type Suite struct {
	Fresh  func(t *testing.T) Subject
	Bubble bool // run each test in a bubble of testing/synctest
}

// Run runs the suite.
func Run(t *testing.T, s Suite) {
	tests := map[string]func(*testing.T, *subject){
		"create, get, list, delete":                 testLife,
		"a repeated call makes one":                 testRepeated,
		"many at once make one":                     testAtOnce,
		"what is unknown is not found":              testUnknown,
		"a taken name is a conflict":                testConflict,
		"a name may be used again":                  testAgain,
		"a delete that is repeated ends":            testDeleteRepeated,
		"labels say whose it is":                    testLabels,
		"a context that has ended":                  testContext,
		"what cannot be made is refused for a time": testBad,
		"stop, start, stop, delete":                 testStop,
	}
	for _, name := range slices.Sorted(maps.Keys(tests)) {
		body := func(t *testing.T) { tests[name](t, &subject{Subject: s.Fresh(t), t: t}) }
		t.Run(name, func(t *testing.T) {
			if s.Bubble {
				synctest.Test(t, body)
			} else {
				body(t)
			}
		})
	}
}

// patience is how long the suite looks for what should be.
const patience = 2 * time.Minute

type subject struct {
	Subject
	t *testing.T
}

func (s *subject) order(name string) provider.Order {
	o := s.Order
	o.Name, o.RequestID = name, uuid.NewString()
	o.Labels = map[string]string{provider.LabelOwner: "suite", provider.LabelVM: name, provider.LabelGeneration: "1"}
	return o
}

func (s *subject) ref(name string) provider.Ref {
	return provider.Ref{Project: s.Scope.Project, Zone: s.Scope.Zone, Name: name}
}

// until looks until done or an error.
func (s *subject) until(what string, look func() (bool, error)) error {
	s.t.Helper()
	every := s.Every
	if every == 0 {
		every = 20 * time.Millisecond
	}
	for end := time.Now().Add(patience); time.Now().Before(end); {
		if done, err := look(); done || err != nil {
			return err
		}
		select {
		case <-s.t.Context().Done():
			s.t.Fatal(s.t.Context().Err())
		case <-time.After(every):
		}
	}
	s.t.Fatalf("%s: not done after %v", what, patience)
	return nil
}

func (s *subject) create(o provider.Order) error {
	s.t.Helper()
	return s.until("create "+o.Name, func() (bool, error) { return s.Provider.Create(s.t.Context(), o) })
}

func (s *subject) made(name string) (provider.Order, provider.Instance) {
	s.t.Helper()
	o := s.order(name)
	if err := s.create(o); err != nil {
		s.t.Fatalf("create %s: %v", name, err)
	}
	return o, s.get(name)
}

func (s *subject) get(name string) provider.Instance {
	s.t.Helper()
	i, err := s.Provider.Get(s.t.Context(), s.ref(name))
	if err != nil {
		s.t.Fatalf("get %s: %v", name, err)
	}
	return i
}

func (s *subject) delete(name string) string {
	s.t.Helper()
	id := uuid.NewString()
	err := s.until("delete "+name, func() (bool, error) { return s.Provider.Delete(s.t.Context(), s.ref(name), id) })
	if err != nil {
		s.t.Fatalf("delete %s: %v", name, err)
	}
	return id
}

// list returns all instances by name.
func (s *subject) list() map[string]provider.Instance {
	s.t.Helper()
	all, token := map[string]provider.Instance{}, ""
	for range 100 {
		page, next, err := s.Provider.List(s.t.Context(), s.Scope, token)
		if err != nil {
			s.t.Fatalf("list: %v", err)
		}
		for _, i := range page {
			if _, twice := all[i.Ref.Name]; twice {
				s.t.Errorf("list has %s twice", i.Ref.Name)
			}
			all[i.Ref.Name] = i
		}
		if token = next; token == "" {
			return all
		}
	}
	s.t.Fatal("list does not end")
	return nil
}

func (s *subject) wantClass(what string, err error, want provider.Class) {
	s.t.Helper()
	var e *provider.Error
	if !errors.As(err, &e) || e.Class != want {
		s.t.Errorf("%s: error is %v, want class %s", what, err, want)
		return
	}
	if e.Reason == "" || e.Text == "" {
		s.t.Errorf("%s: error has reason %q and text %q, want both", what, e.Reason, e.Text)
	}
}

func testLife(t *testing.T, s *subject) {
	before := time.Now()
	o, got := s.made("suite-life")
	if got.Ref != s.ref(o.Name) {
		t.Errorf("ref is %+v, want %+v", got.Ref, s.ref(o.Name))
	}
	if got.URL == "" {
		t.Error("instance has no URL")
	}
	if got.Created.Before(before.Add(-time.Minute)) || got.Created.After(time.Now().Add(time.Minute)) {
		t.Errorf("created at %v, it is %v", got.Created, time.Now())
	}
	listed, ok := s.list()[o.Name]
	if !ok {
		t.Fatalf("list has no %s", o.Name)
	}
	if listed.Ref != got.Ref || listed.URL != got.URL {
		t.Errorf("listed as %+v, got as %+v", listed, got)
	}
	s.delete(o.Name)
	_, err := s.Provider.Get(t.Context(), s.ref(o.Name))
	s.wantClass("get of what was deleted", err, provider.NotFound)
	if _, ok := s.list()[o.Name]; ok {
		t.Errorf("list still has %s", o.Name)
	}
}

func testRepeated(t *testing.T, s *subject) {
	o, first := s.made("suite-repeated")
	for range 3 {
		if err := s.create(o); err != nil {
			t.Fatalf("create again: %v", err)
		}
	}
	if again := s.get(o.Name); again.URL != first.URL {
		t.Errorf("another instance: %s, was %s", again.URL, first.URL)
	}
	if n := len(s.list()); n != 1 {
		t.Errorf("%d instances, want 1", n)
	}
	s.delete(o.Name)
}

func testAtOnce(t *testing.T, s *subject) {
	o := s.order("suite-at-once")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := s.Provider.Create(t.Context(), o); err != nil {
				var e *provider.Error
				if !errors.As(err, &e) || e.Class != provider.Transient { // who came while another was at it may be asked to come again
					t.Errorf("create: %v", err)
				}
			}
		})
	}
	wg.Wait()
	if err := s.create(o); err != nil {
		t.Fatal(err)
	}
	if n := len(s.list()); n != 1 {
		t.Errorf("%d instances, want 1", n)
	}
	s.delete(o.Name)
}

func testUnknown(t *testing.T, s *subject) {
	_, err := s.Provider.Get(t.Context(), s.ref("suite-nobody"))
	s.wantClass("get", err, provider.NotFound)
	done, err := s.Provider.Delete(t.Context(), s.ref("suite-nobody"), uuid.NewString())
	if !done || err != nil {
		t.Errorf("delete of what is not there: %v, %v; want done", done, err)
	}
}

func testConflict(t *testing.T, s *subject) {
	o, first := s.made("suite-conflict")
	other := s.order(o.Name)
	other.Labels[provider.LabelGeneration] = "2"
	s.wantClass("create under the same name", s.create(other), provider.Conflict)
	if again := s.get(o.Name); again.URL != first.URL {
		t.Errorf("another instance: %s, was %s", again.URL, first.URL)
	}
	s.delete(o.Name)
}

func testAgain(t *testing.T, s *subject) {
	o, first := s.made("suite-again")
	s.delete(o.Name)
	next := s.order(o.Name)
	next.Labels[provider.LabelGeneration] = "2"
	if err := s.create(next); err != nil {
		t.Fatalf("create under a name that was used: %v", err)
	}
	second := s.get(o.Name)
	if second.URL == first.URL {
		t.Errorf("the second instance has the identity of the first: %s", first.URL)
	}
	if g := second.Labels[provider.LabelGeneration]; g != "2" {
		t.Errorf("generation is %q, want 2", g)
	}
	s.delete(o.Name)
}

func testDeleteRepeated(t *testing.T, s *subject) {
	o, _ := s.made("suite-delete")
	id := s.delete(o.Name)
	for range 2 {
		if done, err := s.Provider.Delete(t.Context(), s.ref(o.Name), id); !done || err != nil {
			t.Errorf("delete again: %v, %v; want done", done, err)
		}
	}
}

func testLabels(t *testing.T, s *subject) {
	var names []string
	for n := range 3 {
		o, got := s.made(fmt.Sprintf("suite-label-%d", n))
		names = append(names, o.Name)
		for k, v := range o.Labels {
			if got.Labels[k] != v {
				t.Errorf("label %s of %s is %q, want %q", k, o.Name, got.Labels[k], v)
			}
		}
	}
	all := s.list()
	for _, name := range names {
		if vm := all[name].Labels[provider.LabelVM]; vm != name {
			t.Errorf("%s is listed with VM %q", name, vm)
		}
		s.delete(name)
	}
}

func testContext(t *testing.T, s *subject) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	calls := map[string]func() error{
		"create": func() error { _, err := s.Provider.Create(ctx, s.order("suite-context")); return err },
		"get":    func() error { _, err := s.Provider.Get(ctx, s.ref("suite-context")); return err },
		"delete": func() error {
			_, err := s.Provider.Delete(ctx, s.ref("suite-context"), uuid.NewString())
			return err
		},
		"list": func() error { _, _, err := s.Provider.List(ctx, s.Scope, ""); return err },
	}
	for name, call := range calls {
		if err := call(); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, want context.Canceled", name, err)
		}
	}
	if n := len(s.list()); n != 0 {
		t.Errorf("%d instances, want none", n)
	}
}

func testBad(t *testing.T, s *subject) {
	if s.Bad.Name == "" {
		t.Skip("this cloud refuses nothing")
	}
	o := s.Bad
	o.RequestID = uuid.NewString()
	err := s.create(o)
	s.wantClass("create", err, provider.Invalid)
	if n := len(s.list()); n != 0 {
		t.Errorf("%d instances, want none", n)
	}
}

// testStop is of clouds that are Stoppers. A stopped instance is there, with all
// that it was.
func testStop(t *testing.T, s *subject) {
	cloud, ok := s.Provider.(provider.Stopper)
	if !ok {
		t.Skip("instances of this cloud cannot be stopped")
	}
	stop := func(name, id string) {
		t.Helper()
		if err := s.until("stop "+name, func() (bool, error) { return cloud.Stop(t.Context(), s.ref(name), id) }); err != nil {
			t.Fatalf("stop %s: %v", name, err)
		}
	}
	start := func(name, id string) {
		t.Helper()
		if err := s.until("start "+name, func() (bool, error) { return cloud.Start(t.Context(), s.ref(name), id) }); err != nil {
			t.Fatalf("start %s: %v", name, err)
		}
	}
	o, first := s.made("suite-stop")
	for range 2 {
		ids := []string{uuid.NewString(), uuid.NewString()}
		for range 2 { // a repeated call does nothing else
			stop(o.Name, ids[0])
		}
		got := s.get(o.Name)
		if got.URL != first.URL || !maps.Equal(got.Labels, first.Labels) {
			t.Errorf("stopped it is %+v, it was %+v", got, first)
		}
		if _, ok := s.list()[o.Name]; !ok {
			t.Errorf("list has no %s, which is stopped", o.Name)
		}
		for range 2 {
			start(o.Name, ids[1])
		}
		if got := s.get(o.Name); got.URL != first.URL {
			t.Errorf("started it is another: %s, it was %s", got.URL, first.URL)
		}
	}
	stop(o.Name, uuid.NewString())
	s.delete(o.Name)
	_, err := s.Provider.Get(t.Context(), s.ref(o.Name))
	s.wantClass("get of what was deleted", err, provider.NotFound)
	_, err = cloud.Stop(t.Context(), s.ref(o.Name), uuid.NewString())
	s.wantClass("stop of what was deleted", err, provider.NotFound)
	_, err = cloud.Start(t.Context(), s.ref(o.Name), uuid.NewString())
	s.wantClass("start of what was deleted", err, provider.NotFound)
}
