package api

import (
	"bytes"
	"fmt"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/skepdev/skep"
	pb "github.com/skepdev/skep/api/swarmingpb"
)

// Limits of a task, spec api-v2.md §4.
const (
	maxSlices        = 8
	maxCommand       = 128
	maxEnv           = 64
	maxTags          = 256
	maxOutputs       = 4096
	maxCaches        = 32
	maxPackages      = 64
	maxSecret        = 20480
	maxTimeout       = 7*24*time.Hour - 3600*time.Second - 60*time.Second
	maxExpiration    = 7 * 24 * time.Hour
	minTimeout       = 30 * time.Second
	maxGrace         = time.Hour
	maxAlternatives  = 512
	maxOrProduct     = 8
	maxName          = 1024    // ours: the reference has no limit
	maxCommandBytes  = 1 << 20 // ours: the whole command line
	maxUUID          = 256     // ours
	maxUser          = 256     // ours
	minPingTolerance = 60 * time.Second
	maxPingTolerance = 1200 * time.Second
	highestOrdinary  = 20 // priorities below need a permission
)

// Submission is a NewTaskRequest as nouns.
type Submission struct {
	Request *skep.TaskRequest // without ID, CreatedAt, Authenticated, automatic tags
	Secret  []byte
	Pool    string
}

// Pool returns the one pool that all slices ask for, or an Invalid error. It
// is what access is decided on, before the rest is validated.
// spec api-v2.md §6.1.
func Pool(req *pb.NewTaskRequest) (string, error) {
	if len(req.TaskSlices) == 0 {
		return "", bad("task_slices", "at least one slice is required")
	}
	pool := ""
	for i, s := range req.TaskSlices {
		field := fmt.Sprintf("task_slices[%d].properties.dimensions", i)
		found := ""
		for _, d := range s.GetProperties().GetDimensions() {
			if d.Key != "pool" {
				continue
			}
			if found != "" || strings.Contains(d.Value, "|") {
				return "", bad(field, "pool must have exactly one value")
			}
			if err := skep.CheckDimensionValue(field, d.Key, d.Value); err != nil {
				return "", prefixed(err)
			}
			found = d.Value
		}
		switch {
		case found == "":
			return "", bad(field, "pool is required")
		case pool != "" && pool != found:
			return "", bad(field, "pool %q differs from %q of an earlier slice", found, pool)
		}
		pool = found
	}
	return pool, nil
}

// bad is an Invalid error with the prefix that clients know.
func bad(field, format string, args ...any) error {
	return prefixed(skep.Invalidf(field, format, args...))
}

func prefixed(err error) error {
	return &skep.Error{Kind: skep.KindOf(err), Field: skep.FieldOf(err), Text: "bad request: " + err.Error()}
}

// NewTask validates req by the rules of spec api-v2.md §4 and returns it as
// nouns. The first fault found is returned, naming its field.
func NewTask(req *pb.NewTaskRequest) (*Submission, error) {
	pool, err := Pool(req)
	if err != nil {
		return nil, err
	}
	c := &checker{}
	r := &skep.TaskRequest{
		Name: req.Name, Parent: req.ParentTaskId, Priority: req.Priority, User: req.User,
		ServiceAccount: req.ServiceAccount, Realm: req.Realm, UUID: req.RequestUuid,
		PubSubTopic: req.PubsubTopic, PubSubToken: req.PubsubAuthToken, PubSubUserdata: req.PubsubUserdata,
		PingTolerance: time.Duration(req.BotPingToleranceSecs) * time.Second,
		ResultDB:      req.Resultdb.GetEnable(),
	}
	c.request(req)
	c.tags(req.Tags)
	r.Tags = slices.Clone(req.Tags)
	secret := []byte(nil)
	for i, s := range req.TaskSlices {
		field := fmt.Sprintf("task_slices[%d]", i)
		r.Slices = append(r.Slices, c.slice(field, s))
		for j := range i {
			c.check(!reflect.DeepEqual(r.Slices[j].Properties, r.Slices[i].Properties) || !bytes.Equal(secretOf(req, j), secretOf(req, i)),
				field, "has the same properties as slice %d", j)
		}
		if b := secretOf(req, i); len(b) > 0 {
			c.check(secret == nil || slices.Equal(secret, b), field+".properties.secret_bytes", "differs from that of an earlier slice; all slices share one secret")
			secret = b
		}
	}
	if c.err != nil {
		return nil, c.err
	}
	r.HasSecret = secret != nil
	if r.ServiceAccount == "" {
		r.ServiceAccount = "none"
	}
	if r.PingTolerance == 0 {
		r.PingTolerance = maxPingTolerance
	}
	return &Submission{Request: r, Secret: secret, Pool: pool}, nil
}

func secretOf(req *pb.NewTaskRequest, slice int) []byte {
	return req.TaskSlices[slice].GetProperties().GetSecretBytes()
}

// checker keeps the first fault.
type checker struct{ err error }

func (c *checker) check(ok bool, field, format string, args ...any) {
	if !ok && c.err == nil {
		c.err = bad(field, format, args...)
	}
}

func (c *checker) fail(err error) {
	if err != nil && c.err == nil {
		c.err = prefixed(err)
	}
}

// text demands valid UTF-8 without NUL: neither engine nor process can take
// anything else.
func (c *checker) text(field, s string, limit int) {
	c.check(len(s) <= limit, field, "has %d bytes, at most %d are allowed", len(s), limit)
	c.check(utf8.ValidString(s), field, "is not valid UTF-8")
	c.check(!strings.ContainsRune(s, 0), field, "contains a NUL byte")
}

func (c *checker) count(field string, n, limit int) bool {
	c.check(n <= limit, field, "has %d entries, at most %d are allowed", n, limit)
	return n <= limit
}

func (c *checker) seconds(field string, secs int32, zero bool, low, high time.Duration) time.Duration {
	d := time.Duration(secs) * time.Second
	if zero && secs == 0 {
		return 0
	}
	also := ""
	if zero {
		also = "0 or "
	}
	c.check(d >= low && d <= high, field, "is %d, want %s%d to %d seconds", secs, also, int(low.Seconds()), int(high.Seconds()))
	return d
}

func (c *checker) request(req *pb.NewTaskRequest) {
	c.check(req.ExpirationSecs == 0, "expiration_secs", "must be unset; set it in each of task_slices")
	c.check(req.Properties == nil, "properties", "must be unset; set them in each of task_slices")
	c.check(req.Name != "", "name", "is required")
	c.text("name", req.Name, maxName)
	c.count("task_slices", len(req.TaskSlices), maxSlices)
	if req.ParentTaskId != "" {
		if _, err := skep.ParseTaskID(req.ParentTaskId); err != nil {
			c.check(false, "parent_task_id", "%q is not a task id", req.ParentTaskId)
		}
	}
	c.check(req.Priority >= 1 && req.Priority <= 255, "priority", "is %d, want 1 (most urgent) to 255", req.Priority)
	c.check(req.ServiceAccount == "" || req.ServiceAccount == "none" || req.ServiceAccount == "bot" ||
		(isEmail(req.ServiceAccount) && len(req.ServiceAccount) <= 128), "service_account", "%.130q is not none, bot or an e-mail address of at most 128 characters", req.ServiceAccount)
	c.pubsub(req)
	c.seconds("bot_ping_tolerance_secs", req.BotPingToleranceSecs, true, minPingTolerance, maxPingTolerance)
	c.check(req.Realm == "" || isRealm(req.Realm), "realm", "%.100q is not <project>:<realm>", req.Realm)
	c.text("request_uuid", req.RequestUuid, maxUUID)
	c.text("user", req.User, maxUser)
	_, known := pb.NewTaskRequest_PoolTaskTemplateField_name[int32(req.PoolTaskTemplate)]
	c.check(known, "pool_task_template", "%d is not a known value", req.PoolTaskTemplate)
}

func isEmail(s string) bool {
	name, host, ok := strings.Cut(s, "@")
	return ok && name != "" && strings.Contains(host, ".") && !strings.ContainsAny(s, " \t\r\n:/") && !strings.Contains(host, "@") && utf8.ValidString(s)
}

func isRealm(s string) bool {
	project, realm, ok := strings.Cut(s, ":")
	word := func(w string) bool {
		return w != "" && strings.Trim(w, "abcdefghijklmnopqrstuvwxyz0123456789_.-/@") == ""
	}
	return ok && len(s) <= 400 && word(project) && word(realm)
}

func (c *checker) pubsub(req *pb.NewTaskRequest) {
	c.check(req.PubsubTopic != "" || (req.PubsubAuthToken == "" && req.PubsubUserdata == ""), "pubsub_topic", "is required with pubsub_auth_token or pubsub_userdata")
	c.text("pubsub_userdata", req.PubsubUserdata, 1024)
	c.text("pubsub_auth_token", req.PubsubAuthToken, 1024)
	if req.PubsubTopic != "" {
		c.text("pubsub_topic", req.PubsubTopic, 1024)
		c.check(isTopic(req.PubsubTopic), "pubsub_topic", "%.100q is not projects/<project>/topics/<topic>", req.PubsubTopic)
	}
}

func isTopic(s string) bool {
	rest, ok := strings.CutPrefix(s, "projects/")
	project, topic, ok2 := strings.Cut(rest, "/topics/")
	if !ok || !ok2 || len(topic) < 4 || len(topic) > 256 || strings.HasPrefix(topic, "goog") || !isLetter(topic[0]) {
		return false
	}
	for _, b := range []byte(topic) {
		if !isLetter(b) && !isDigit(b) && !strings.ContainsRune("._-~+%", rune(b)) {
			return false
		}
	}
	project = strings.TrimPrefix(project, "google.com:")
	if len(project) < 6 || len(project) > 30 || project[0] < 'a' || project[0] > 'z' || project[len(project)-1] == '-' {
		return false
	}
	return strings.Trim(project, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

func isLetter(b byte) bool { return b|0x20 >= 'a' && b|0x20 <= 'z' }
func isDigit(b byte) bool  { return b >= '0' && b <= '9' }

func (c *checker) tags(tags []string) {
	if !c.count("tags", len(tags), maxTags) {
		return
	}
	for i, t := range tags {
		field := fmt.Sprintf("tags[%d]", i)
		key, value, ok := strings.Cut(t, ":")
		c.check(ok, field, "%.80q is not key:value", t)
		c.check(key != "" && len(key) <= 64, field, "the key of %.80q must have 1 to 64 characters", t)
		c.text(field, t, 64+1+256)
		c.check(len(value) <= 256, field, "the value of %.80q has %d bytes, at most 256 are allowed", t, len(value))
		c.check(strings.TrimSpace(value) == value, field, "the value of %.80q has surrounding blanks", t)
		c.check(key != "swarming.terminate", field, "swarming.terminate is reserved")
	}
}

func (c *checker) slice(field string, s *pb.TaskSlice) skep.Slice {
	c.check(s.GetProperties() != nil, field+".properties", "is required")
	p := s.GetProperties()
	out := skep.Slice{
		Expiration:      c.seconds(field+".expiration_secs", s.GetExpirationSecs(), false, minTimeout, maxExpiration),
		WaitForCapacity: s.GetWaitForCapacity(),
	}
	out.Properties = c.properties(field+".properties", p)
	return out
}

func (c *checker) properties(field string, p *pb.TaskProperties) skep.Properties {
	at := func(name string) string { return field + "." + name }
	out := skep.Properties{
		Command: slices.Clone(p.GetCommand()), RelativeCwd: p.GetRelativeCwd(), Outputs: slices.Clone(p.GetOutputs()), Idempotent: p.GetIdempotent(),
		GracePeriod:      c.seconds(at("grace_period_secs"), p.GetGracePeriodSecs(), false, 0, maxGrace),
		ExecutionTimeout: c.seconds(at("execution_timeout_secs"), p.GetExecutionTimeoutSecs(), false, minTimeout, maxTimeout),
		IOTimeout:        c.seconds(at("io_timeout_secs"), p.GetIoTimeoutSecs(), true, minTimeout, maxTimeout),
	}
	c.check(len(p.GetSecretBytes()) <= maxSecret, at("secret_bytes"), "has %d bytes, at most %d are allowed", len(p.GetSecretBytes()), maxSecret)
	c.check(len(out.Command) > 0, at("command"), "is required")
	if c.count(at("command"), len(out.Command), maxCommand) {
		total := 0
		for i, a := range out.Command {
			c.text(fmt.Sprintf("%s[%d]", at("command"), i), a, maxCommandBytes)
			total += len(a)
		}
		c.check(total <= maxCommandBytes, at("command"), "has %d bytes in all, at most %d are allowed", total, maxCommandBytes)
	}
	if out.RelativeCwd != "" {
		// A backslash is allowed here, so that Windows tasks can use one.
		c.path(at("relative_cwd"), strings.ReplaceAll(out.RelativeCwd, `\`, "/"), 256)
	}
	out.Env, out.EnvPrefixes = c.env(field, p)
	out.CASInput = c.casInput(at("cas_input_root"), p.GetCasInputRoot())
	if c.count(at("outputs"), len(out.Outputs), maxOutputs) {
		for i, o := range out.Outputs {
			c.path(fmt.Sprintf("%s[%d]", at("outputs"), i), o, 512)
		}
	}
	out.Caches = c.caches(at("caches"), p.GetCaches())
	out.CIPD = c.cipd(at("cipd_input"), p)
	c.mounts(field, &out)
	out.Dimensions = c.dimensions(at("dimensions"), p.GetDimensions())
	if ct := p.GetContainment(); ct != nil {
		out.Containment = &skep.Containment{
			Type: int32(ct.ContainmentType), LowerPriority: ct.LowerPriority,
			MaxProcesses: ct.LimitProcesses, MaxMemory: ct.LimitTotalCommittedMemory,
		}
		_, known := pb.Containment_ContainmentType_name[int32(ct.ContainmentType)]
		c.check(known, at("containment.containment_type"), "%d is not a known value", ct.ContainmentType)
		c.check(ct.LimitProcesses >= 0, at("containment.limit_processes"), "is negative")
		c.check(ct.LimitTotalCommittedMemory >= 0, at("containment.limit_total_committed_memory"), "is negative")
	}
	return out
}

var (
	envName   = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	cacheName = regexp.MustCompile(`^[a-z0-9_]+$`)
	casName   = regexp.MustCompile(`^projects/[a-z0-9-]+/instances/[a-z0-9-_]+$`)
)

func (c *checker) env(field string, p *pb.TaskProperties) (env []skep.KeyValue, prefixes []skep.KeyValues) {
	name := func(f, key string) {
		c.check(len(key) <= 64 && envName.MatchString(key), f, "%.80q is not a variable name of at most 64 characters", key)
	}
	if c.count(field+".env", len(p.GetEnv()), maxEnv) {
		for i, e := range p.GetEnv() {
			f := fmt.Sprintf("%s.env[%d]", field, i)
			name(f, e.Key)
			c.text(f, e.Value, 1024)
			c.check(!slices.ContainsFunc(env, func(o skep.KeyValue) bool { return o.Key == e.Key }), f, "%s is set twice", e.Key)
			env = append(env, skep.KeyValue{Key: e.Key, Value: e.Value})
		}
	}
	if c.count(field+".env_prefixes", len(p.GetEnvPrefixes()), maxEnv) {
		for i, e := range p.GetEnvPrefixes() {
			f := fmt.Sprintf("%s.env_prefixes[%d]", field, i)
			name(f, e.Key)
			c.check(len(e.Value) > 0, f, "%s has no path", e.Key)
			c.count(f, len(e.Value), 1024)
			for _, v := range e.Value {
				c.path(f, v, 1024)
			}
			c.check(!slices.ContainsFunc(prefixes, func(o skep.KeyValues) bool { return o.Key == e.Key }), f, "%s is set twice", e.Key)
			prefixes = append(prefixes, skep.KeyValues{Key: e.Key, Values: slices.Clone(e.Value)})
		}
	}
	slices.SortFunc(env, func(a, b skep.KeyValue) int { return strings.Compare(a.Key, b.Key) })
	slices.SortFunc(prefixes, func(a, b skep.KeyValues) int { return strings.Compare(a.Key, b.Key) })
	return env, prefixes
}

// path checks a path relative to the task's root: clean, with slashes, and
// inside.
func (c *checker) path(field, p string, limit int) {
	c.text(field, p, limit)
	c.check(p != "", field, "the path is empty")
	c.check(!strings.Contains(p, `\`), field, "%.100q contains a backslash; use /", p)
	c.check(!strings.HasPrefix(p, "/"), field, "%.100q must be relative", p)
	c.check(path.Clean(p) == p, field, "%.100q is not clean; write %.100q", p, path.Clean(p))
	c.check(p != ".." && !strings.HasPrefix(p, "../"), field, "%.100q leaves the task's directory", p)
}

func (c *checker) casInput(field string, r *pb.CASReference) *skep.CASReference {
	if r == nil {
		return nil
	}
	c.check(casName.MatchString(r.CasInstance), field+".cas_instance", "%.100q does not match %s", r.CasInstance, casName)
	c.check(r.Digest != nil, field+".digest", "is required")
	c.check(r.Digest == nil || r.Digest.Hash != "", field+".digest.hash", "is required")
	c.text(field+".digest.hash", r.GetDigest().GetHash(), 128)
	c.check(r.GetDigest().GetSizeBytes() >= 0, field+".digest.size_bytes", "is negative")
	return &skep.CASReference{Instance: r.CasInstance, Hash: r.GetDigest().GetHash(), Size: r.GetDigest().GetSizeBytes()}
}

func (c *checker) caches(field string, in []*pb.CacheEntry) []skep.Cache {
	if !c.count(field, len(in), maxCaches) {
		return nil
	}
	var out []skep.Cache
	for i, e := range in {
		f := fmt.Sprintf("%s[%d]", field, i)
		c.check(len(e.Name) <= 128 && cacheName.MatchString(e.Name), f+".name", "%.140q does not match %s or is longer than 128", e.Name, cacheName)
		c.path(f+".path", e.Path, 256)
		c.check(!slices.ContainsFunc(out, func(o skep.Cache) bool { return o.Name == e.Name }), f+".name", "%s is used twice", e.Name)
		out = append(out, skep.Cache{Name: e.Name, Path: e.Path})
	}
	return out
}

// dimensions returns the constraints sorted.
func (c *checker) dimensions(field string, in []*pb.StringPair) skep.Constraints {
	out := make(skep.Constraints, 0, len(in))
	total, product, ids := 0, 1, 0
	for i, d := range in {
		f := fmt.Sprintf("%s[%d]", field, i)
		c.fail(skep.CheckDimensionKey(f, d.Key))
		con := skep.ParseConstraint(d.Key, d.Value)
		total += len(con.Values)
		if total > maxAlternatives {
			break
		}
		product = min(product*len(con.Values), maxOrProduct+1)
		for j, v := range con.Values {
			c.text(f, v, skep.MaxDimensionValue)
			c.fail(skep.CheckDimensionValue(f, d.Key, v))
			c.check(!slices.Contains(con.Values[:j], v), f, "%s has alternative %q twice", d.Key, v)
		}
		if d.Key == "id" {
			ids += len(con.Values)
		}
		out = append(out, con)
	}
	c.check(total <= maxAlternatives, field, "has more than %d values", maxAlternatives)
	c.check(product <= maxOrProduct, field, "the alternatives multiply to more than %d combinations", maxOrProduct)
	c.check(ids <= 1, field, "id must have at most one value")
	out.Sort()
	for i := 1; i < len(out); i++ {
		c.check(out[i].Key != out[i-1].Key || !slices.Equal(out[i].Values, out[i-1].Values), field, "%s=%s is there twice", out[i].Key, out[i].Value())
	}
	return out
}
