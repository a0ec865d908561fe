package client

import (
	"context"
	"crypto/x509"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/prpc"
	"github.com/skepdev/skep/api/skeppb"
	pb "github.com/skepdev/skep/api/swarmingpb"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Each method of the API has a method here that calls it, so that none can be forgotten.
func TestEveryMethod(t *testing.T) {
	var called string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		called = r.URL.Path
		w.Header().Set("X-Prpc-Grpc-Code", "0")
		w.Header().Set("Content-Type", "application/prpc; encoding=binary")
	}))
	defer server.Close()
	c, err := New(Options{Server: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, file := range []protoreflect.FileDescriptor{pb.File_swarmingpb_services_proto, skeppb.File_skeppb_tasks_proto} {
		for i := range file.Services().Len() {
			for j := range file.Services().Get(i).Methods().Len() {
				d := file.Services().Get(i).Methods().Get(j)
				m := reflect.ValueOf(c).MethodByName(string(d.Name()))
				if !m.IsValid() {
					t.Errorf("Client has no method %s", d.Name())
					continue
				}
				in := []reflect.Value{reflect.ValueOf(t.Context())}
				for k := 1; k < m.Type().NumIn(); k++ {
					in = append(in, reflect.New(m.Type().In(k)).Elem())
				}
				out := m.Call(in)
				if err := out[1].Interface(); err != nil {
					t.Errorf("%s: %v", d.Name(), err)
				}
				if want := prpc.Prefix + string(d.Parent().FullName()) + "/" + string(d.Name()); called != want {
					t.Errorf("%s calls %s, want %s", d.Name(), called, want)
				}
				got := out[0].Interface().(protoreflect.ProtoMessage).ProtoReflect().Descriptor().FullName()
				if got != d.Output().FullName() {
					t.Errorf("%s returns %s, want %s", d.Name(), got, d.Output().FullName())
				}
			}
		}
	}
}

func TestWatch(t *testing.T) {
	want := &skeppb.WatchRequest{TaskId: "5a0", Offset: 7, KnownState: pb.TaskState_RUNNING, Wait: durationpb.New(45 * time.Second)}
	calls := 0
	s := prpc.NewServer(prpc.Options{Before: func(ctx context.Context) (context.Context, error) {
		if prpc.CallFrom(ctx).Request.Header.Get("Authorization") != "Bearer tok" {
			return nil, skep.Errorf(skep.Unauthenticated, "no token")
		}
		return ctx, nil
	}})
	err := s.Register(skeppb.File_skeppb_tasks_proto.Services().ByName("Tasks"), prpc.Methods{
		"Watch": prpc.Unary(func(_ context.Context, req *skeppb.WatchRequest) (*skeppb.WatchResponse, error) {
			if diff := cmp.Diff(want, req, protocmp.Transform()); diff != "" {
				t.Errorf("request differs (-want +got):\n%s", diff)
			}
			if calls++; calls > 1 {
				return nil, skep.Errorf(skep.Unavailable, "later")
			}
			return &skeppb.WatchResponse{Output: []byte("hi"), Offset: 7}, nil
		}),
	})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewTLSServer(s)
	defer server.Close()
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	c, err := New(Options{Server: strings.TrimPrefix(server.URL, "https://"), Token: "tok", RootCAs: roots})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got, err := c.Watch(t.Context(), want.TaskId, 7, pb.TaskState_RUNNING, 45*time.Second)
	if err != nil || string(got.Output) != "hi" {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := c.Watch(t.Context(), want.TaskId, 7, pb.TaskState_RUNNING, 45*time.Second); skep.KindOf(err) != skep.Unavailable || calls != 2 {
		t.Errorf("%d calls, %v; a failed Watch is the caller's to repeat", calls, err)
	}
}

func TestNewRefusesBadAddresses(t *testing.T) {
	if _, err := New(Options{Server: "http://example.com:80"}); err == nil {
		t.Error("plain HTTP to a foreign host")
	}
}
