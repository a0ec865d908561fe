package provider

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Provider is one cloud. Its calls may be repeated, made by many at once, and
// return soon: making and taking away go on meanwhile, and who asked looks
// again. An error is an *Error unless ctx ended.
type Provider interface {
	// Create begins to make what o describes, or says how it goes with what was
	// begun under o.RequestID: a repeated call never makes a second one. done is
	// when the instance exists or never will; then err says why not.
	Create(ctx context.Context, o Order) (done bool, err error)
	// Get returns an instance; one that is not there is an Error of class NotFound.
	Get(ctx context.Context, r Ref) (Instance, error)
	// Delete begins to take an instance away, or says how it goes. done is when
	// it is gone; one that is not there is gone.
	Delete(ctx context.Context, r Ref, requestID string) (done bool, err error)
	// List returns a page of the instances of one place, owned by whomever, and
	// the token of the next page, "" behind the last.
	List(ctx context.Context, s Scope, token string) (page []Instance, next string, err error)
}

// Stopper is a Provider whose instances can be stopped, and started again as
// they were: with their name, labels and disks. Its calls are as those of
// Provider; an instance that is not there is an Error of class NotFound.
type Stopper interface {
	// Stop begins to stop an instance, or says how it goes. done is when nothing
	// of it runs any more; one that does not run is done. Nobody asks it before:
	// its bot has ended.
	Stop(ctx context.Context, r Ref, requestID string) (done bool, err error)
	// Start begins to start an instance that was stopped, or says how it goes.
	// done is when it runs; one that runs is done.
	Start(ctx context.Context, r Ref, requestID string) (done bool, err error)
}

// QuotaTeller is a Provider whose cloud limits what a project may use.
type QuotaTeller interface {
	// Quotas returns the limits of a project in regions. spec §7.12.
	Quotas(ctx context.Context, project string, regions []string) ([]Allowance, error)
}

// Allowance is one limit of a project in a region, and what is used of it.
type Allowance struct {
	Region, Metric string // Metric: "CPUS"
	Limit, Usage   float64
}

// Order is what Create makes.
type Order struct {
	RequestID  string // a UUID; holds the generation, so that a name may be used again
	Name       string // of the instance, and id of its bot; a legal host name
	Zone       string
	Labels     map[string]string // besides those of Attributes: whose it is
	Attributes Attributes        // as declared
	Server     string            // URL of the bot's server
	Device     string            // lab device that it is for, ""
}

// Ref names an instance. Project and Zone are "" where a cloud has none.
type Ref struct {
	Project, Zone, Name string
}

// Scope is what List lists.
type Scope struct {
	Project, Zone string
}

// Instance is what a cloud made.
type Instance struct {
	Ref      Ref
	URL      string // its identity in the cloud: another one of the same name has another
	Created  time.Time
	Labels   map[string]string
	Networks []Address
	Ended    bool // it is there and does not run any more, nor ever again by itself
}

// Address of a network interface.
type Address struct {
	Internal string
	External []string
}

// Labels that every instance has which a provider made: they alone say whose
// it is. spec §17 D7.
const (
	LabelOwner      = "skep-provider"   // the fleet: a digest of the store's identity
	LabelVM         = "skep-vm"         // id of its VM
	LabelGeneration = "skep-generation" // of that VM
)

// EnvPools tells a bot, by its environment, the pools that it is in, with commas
// between them.
const EnvPools = "SKEP_BOT_POOLS"

// Class of an error says what is done about it. spec §11.
type Class string

// The classes of errors.
const (
	RateLimit  Class = "rate_limit" // the plan stays; the cloud is asked less
	Transient  Class = "transient"  // the plan stays; tried again
	Permission Class = "permission" // the pool pauses
	Quota      Class = "quota"      // the pool pauses
	Invalid    Class = "invalid"    // the pool pauses: its shape is wrong
	Conflict   Class = "conflict"   // the name is taken: another one is
	Exhausted  Class = "exhausted"  // the zone has no room: another zone
	NotFound   Class = "not_found"
	NoBot      Class = "no_bot" // it was made, and its bot never came: the pool pauses. No cloud says so
)

// Error is a refusal or failure of a cloud.
type Error struct {
	Class  Class
	Code   int    // HTTP status, 200 when the operation failed and not the call, 0 without one
	Reason string // the cloud's word, "ZONE_RESOURCE_POOL_EXHAUSTED"
	Text   string
}

// Error returns a sentence.
func (e *Error) Error() string { return fmt.Sprintf("%s (%s): %s", e.Class, e.Reason, e.Text) }

// ClassOf returns the class of a cloud's error; what is not one is Transient.
func ClassOf(err error) Class {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Class
	}
	return Transient
}
