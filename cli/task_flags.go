package cli

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	pb "github.com/skepdev/skep/api/swarmingpb"
	"github.com/skepdev/skep/cas"
	"github.com/skepdev/skep/client"
)

// defaultCASInstance is the instance of a task that names none (decisions.md 14).
const defaultCASInstance = "projects/skep/instances/default"

// taskFlags describe a new task, for run and trigger: spec/cli-and-ui.md §3.1.
type taskFlags struct {
	dimensions, optional, env, envPrefixes, caches, packages pairs
	expiration, hardTimeout, ioTimeout, gracePeriod          seconds
	priority                                                 int32
	idempotent, resultDB, waitForCapacity                    bool
	containment                                              string
	outputs, tags                                            []string
	cwd, digest, casInstance, secretPath                     string
	account, realm, name, user                               string
}

// register adds what run and trigger share; the defaults of the times are the
// caller's.
func (t *taskFlags) register(cmd *cobra.Command) {
	f := cmd.Flags()
	t.dimensions = pairs{unique: true, what: "k=v"}
	t.env.what, t.envPrefixes.what, t.caches.what = "K=V", "K=PATH", "NAME=PATH"
	f.VarP(&t.dimensions, "dimension", "d", "what the bot must be, as os=Linux or os=Linux|Mac; repeatable (default pool=default)")
	f.Var(&t.expiration, "expiration", "how long the task may wait for a bot")
	f.Var(&t.hardTimeout, "hard-timeout", "how long the command may run")
	f.Var(&t.ioTimeout, "io-timeout", "how long the command may be silent, 0 = for ever")
	f.Var(&t.gracePeriod, "grace-period", "pause between SIGTERM and SIGKILL")
	f.Int32Var(&t.priority, "priority", 200, "1 (most urgent) to 255")
	f.BoolVar(&t.idempotent, "idempotent", false, "the result may answer an equal later task")
	f.Var(newChoice(&t.containment, "none", "none", "auto", "job_object", "not_specified"), "containment-type", "how processes of the task are held together")
	f.Var(&t.env, "env", "environment variable; repeatable")
	f.Var(&t.envPrefixes, "env-prefix", "path below the task's directory to put in front of a variable; repeatable")
	f.Var(&t.caches, "named-cache", "directory that is kept on the bot between tasks; repeatable")
	f.Var(&t.caches, "cache", "same as --named-cache")
	f.StringVarP(&t.cwd, "relative-cwd", "w", "", "working directory, below the task's directory")
	f.StringVar(&t.secretPath, "secret-bytes-path", "", "`FILE` whose content only the task sees")
	f.StringVar(&t.account, "service-account", "", "none, bot or an e-mail address")
	f.StringVar(&t.realm, "realm", "", "realm of the task, PROJECT:REALM")
	f.StringArrayVar(&t.tags, "tag", nil, "`KEY:VALUE` to find the task by; repeatable")
	f.StringVar(&t.name, "task-name", "", "name of the task (default USER and what it runs)")
	f.StringVar(&t.user, "user", "", "on whose behalf (default $USER)")
	f.BoolVar(&t.waitForCapacity, "wait-for-capacity", false, "stay queued although no known bot fits")
}

// registerTrigger adds what only trigger has.
func (t *taskFlags) registerTrigger(cmd *cobra.Command) {
	f := cmd.Flags()
	t.optional.what, t.packages.what = "k=v:SECONDS", "[DIR:]NAME=VERSION"
	f.Var(&t.optional, "optional-dimension", "dimension to insist on for the first SECONDS only")
	f.Var(&t.packages, "cipd-package", "package to install; repeatable")
	t.registerStorage(cmd)
	f.BoolVar(&t.resultDB, "enable-resultdb", false, "make a ResultDB invocation")
}

// registerStorage adds inputs and outputs.
func (t *taskFlags) registerStorage(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringArrayVar(&t.outputs, "output", nil, "`PATH` to keep after the run; repeatable")
	f.StringVar(&t.digest, "digest", "", "inputs, as `HASH/SIZE` of a directory in content-addressed storage")
	f.StringVar(&t.casInstance, "cas-instance", "", "instance that holds --digest (default "+defaultCASInstance+")")
}

// request builds the call. Its request_uuid is always set, so that it can be
// sent twice. defaultName names the task, after the user, if --task-name does
// not.
func (t *taskFlags) request(cmd *cobra.Command, env *Env, command []string, defaultName func() string) (*pb.NewTaskRequest, error) {
	props, err := t.properties(cmd, command)
	if err != nil {
		return nil, err
	}
	slices, err := t.taskSlices(cmd, props)
	if err != nil {
		return nil, err
	}
	user := cmp.Or(t.user, env.Getenv("USER"))
	return &pb.NewTaskRequest{
		Name:           cmp.Or(t.name, strings.TrimPrefix(user+"/"+defaultName(), "/")),
		Priority:       t.priority,
		TaskSlices:     slices,
		Tags:           t.tags,
		User:           user,
		ServiceAccount: t.account,
		RequestUuid:    newUUID(),
		Resultdb:       &pb.ResultDBCfg{Enable: t.resultDB},
		Realm:          t.realm,
	}, nil
}

func (t *taskFlags) properties(cmd *cobra.Command, command []string) (*pb.TaskProperties, error) {
	if _, ok := t.dimensions.get("pool"); !ok {
		t.dimensions.list = append(t.dimensions.list, pair{"pool", "default"})
	}
	props := &pb.TaskProperties{
		Command:              command,
		RelativeCwd:          t.cwd,
		Dimensions:           stringPairs(t.dimensions.sorted()),
		Env:                  stringPairs(t.env.sorted()),
		ExecutionTimeoutSecs: int32(t.hardTimeout),
		GracePeriodSecs:      int32(t.gracePeriod),
		IoTimeoutSecs:        int32(t.ioTimeout),
		Idempotent:           t.idempotent,
		Outputs:              t.outputs,
		Containment:          &pb.Containment{ContainmentType: pb.Containment_ContainmentType(pb.Containment_ContainmentType_value[strings.ToUpper(t.containment)])},
	}
	for _, c := range t.caches.sorted() {
		props.Caches = append(props.Caches, &pb.CacheEntry{Name: c.key, Path: c.value})
	}
	for _, p := range t.envPrefixes.list {
		i := slices.IndexFunc(props.EnvPrefixes, func(o *pb.StringListPair) bool { return o.Key == p.key })
		if i < 0 {
			props.EnvPrefixes = append(props.EnvPrefixes, &pb.StringListPair{Key: p.key, Value: []string{p.value}})
			continue
		}
		props.EnvPrefixes[i].Value = append(props.EnvPrefixes[i].Value, p.value)
	}
	slices.SortFunc(props.EnvPrefixes, func(a, b *pb.StringListPair) int { return strings.Compare(a.Key, b.Key) })
	for _, p := range t.packages.list {
		dir, name, ok := strings.Cut(p.key, ":")
		if !ok {
			dir, name = ".", p.key // an empty path is refused by servers
		}
		if props.CipdInput == nil {
			props.CipdInput = &pb.CipdInput{}
		}
		props.CipdInput.Packages = append(props.CipdInput.Packages, &pb.CipdPackage{Path: dir, PackageName: name, Version: p.value})
	}
	if t.digest != "" {
		d, err := cas.ParseDigest(t.digest)
		if err != nil {
			return nil, usageErrorf(cmd, "--digest %q: want HASH/SIZE", t.digest)
		}
		props.CasInputRoot = toReference(cmp.Or(t.casInstance, defaultCASInstance), d)
	}
	if t.secretPath != "" {
		secret, err := os.ReadFile(t.secretPath)
		if err != nil {
			return nil, fmt.Errorf("--secret-bytes-path: %w", err)
		}
		props.SecretBytes = secret
	}
	return props, nil
}

// minBaseExpiration is what the base slice keeps of the task's expiration.
const minBaseExpiration = 60

// taskSlices puts, for optional dimensions, a slice with them in front: it
// has their expiration, and the base slice keeps the rest.
func (t *taskFlags) taskSlices(cmd *cobra.Command, props *pb.TaskProperties) ([]*pb.TaskSlice, error) {
	base := &pb.TaskSlice{Properties: props, ExpirationSecs: int32(t.expiration), WaitForCapacity: t.waitForCapacity}
	if len(t.optional.list) == 0 {
		return []*pb.TaskSlice{base}, nil
	}
	first := cloneProperties(props)
	var wait seconds
	for i, o := range t.optional.list {
		cut := strings.LastIndexByte(o.value, ':')
		if cut < 0 {
			return nil, usageErrorf(cmd, "--optional-dimension %s=%s: want k=v:SECONDS", o.key, o.value)
		}
		secs, err := parseSeconds(o.value[cut+1:])
		if err != nil {
			return nil, usageErrorf(cmd, "--optional-dimension %s=%s: %w", o.key, o.value, err)
		}
		if i > 0 && secs != wait {
			return nil, usageErrorf(cmd, "--optional-dimension: all must have the same seconds, as they make one slice")
		}
		wait = secs
		first.Dimensions = append(first.Dimensions, &pb.StringPair{Key: o.key, Value: o.value[:cut]})
	}
	slices.SortFunc(first.Dimensions, func(a, b *pb.StringPair) int {
		return cmp.Or(strings.Compare(a.Key, b.Key), strings.Compare(a.Value, b.Value))
	})
	base.ExpirationSecs = max(base.ExpirationSecs-int32(wait), minBaseExpiration)
	return []*pb.TaskSlice{{Properties: first, ExpirationSecs: int32(wait)}, base}, nil
}

func cloneProperties(p *pb.TaskProperties) *pb.TaskProperties {
	return proto.Clone(p).(*pb.TaskProperties)
}

func stringPairs(list []pair) []*pb.StringPair {
	var out []*pb.StringPair
	for _, p := range list {
		out = append(out, &pb.StringPair{Key: p.key, Value: p.value})
	}
	return out
}

// parentTask is the task this process runs in, if that is a task of the same
// server: new tasks become its children. spec/cli-and-ui.md §1.2.
func parentTask(env *Env, server string) string {
	own, err := client.ParseServer(env.Getenv("SWARMING_SERVER"))
	if err != nil || own != server {
		return ""
	}
	return env.Getenv("SWARMING_TASK_ID")
}
