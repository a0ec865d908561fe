package config

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// rule is what holds for one field wherever it stands. The comment of the
// field says the same; a test compares them.
type rule struct {
	min, max int64  // of a number; 0, 0 = not checked
	zero     bool   // 0 is allowed besides and turns it off
	def      int64  // what a number is that is not given
	items    int    // most values of a list or map; 0 = not checked
	bytes    int    // most of a text that may hold anything; 0 = maxText, without control characters
	required bool   // must be given where its message is
	refused  string // why it must not be given, and what to do
}

const (
	noRBE      = "skep has no remote scheduler"
	noTemplate = "skep has no task templates; put what they add into the tasks"
	noCIPDBot  = "skep serves its own bot; take it out"
	obsolete   = "is obsolete; take it out"
)

// rules are keyed by "Message.field", where the message is named from its file
// on, as "Pool.RBEMigration.rbe_instance".
var rules = map[string]rule{
	"Grant.to": {items: 1000, required: true},

	"SettingsCfg.google_analytics":            {refused: "skep's pages load nothing from elsewhere"},
	"SettingsCfg.reusable_task_age_secs":      {refused: "skep runs every task and answers none with an earlier result; take it out"},
	"SettingsCfg.bot_death_timeout_secs":      {min: 60, max: 86400, def: 600},
	"SettingsCfg.ui_client_id":                {refused: "skep has tokens, not OAuth"},
	"SettingsCfg.max_bot_sleep_time":          {min: 1, max: 3600, def: 60},
	"SettingsCfg.bot_isolate_grpc_proxy":      {refused: obsolete},
	"SettingsCfg.bot_swarming_grpc_proxy":     {refused: obsolete},
	"SettingsCfg.extra_child_src_csp_url":     {items: 100},
	"SettingsCfg.resultdb":                    {refused: "there is no ResultDB"},
	"SettingsCfg.remove_dead_bots_after_days": {min: 1, max: 3650, def: 28},
	"SettingsCfg.group":                       {items: 1000},
	"SettingsCfg.grant":                       {items: 1000},

	"Group.name":                      {required: true},
	"Group.member":                    {items: 10000},
	"Rollout.canary_percent":          {min: 0, max: 100, def: 10},
	"Rollout.probation_secs":          {min: 10, max: 3600, def: 60},
	"Rollout.max_crashes":             {min: 1, max: 1000, def: 3},
	"Rollout.max_crash_percent":       {min: 1, max: 100, def: 5},
	"Rollout.soak_secs":               {min: 0, max: 604800, def: 60},
	"QueenPolicy.lease_secs":          {min: 300, max: 86400, def: 600},
	"QueenPolicy.max_removed_percent": {min: 1, max: 100, def: 20},
	"QueenPolicy.min_drone_version":   {min: 0, max: 999_999_999_999},
	"BotDeployment.stable":            {refused: noCIPDBot},
	"BotDeployment.canary":            {refused: noCIPDBot},
	"BotDeployment.canary_percent":    {min: 0, max: 100},
	"BotDeployment.BotPackage.server": {refused: noCIPDBot}, "BotDeployment.BotPackage.pkg": {refused: noCIPDBot}, "BotDeployment.BotPackage.version": {refused: noCIPDBot},
	"CASSettings.viewer_server": {required: true},

	"PoolsCfg.pool":                        {items: 10000},
	"PoolsCfg.task_template":               {refused: noTemplate},
	"PoolsCfg.task_template_deployment":    {refused: noTemplate},
	"PoolsCfg.bot_monitoring":              {refused: "use the server's metrics"},
	"PoolsCfg.realm":                       {items: 10000},
	"Realm.name":                           {required: true},
	"Realm.grant":                          {items: 1000},
	"Pool.name":                            {items: 1000, required: true},
	"Pool.owners":                          {items: 100},
	"Pool.schedulers":                      {refused: obsolete + "; say with grant who may do what"},
	"Pool.task_template_deployment":        {refused: noTemplate},
	"Pool.task_template_deployment_inline": {refused: noTemplate},
	"Pool.bot_monitoring":                  {refused: "use the server's metrics"},
	"Pool.external_schedulers":             {refused: "skep has no external schedulers"},
	"Pool.realm":                           {required: true},
	"Pool.informational_dimension_re":      {items: 100},
	"Pool.grant":                           {items: 1000},
	"Pool.recovery":                        {items: 16},
	"Pool.expected_bot":                    {items: 10000},
	"Pool.expected_bot_grace_secs":         {min: 60, max: 604800, def: 900},
	"Pool.max_bot_uptime_secs":             {min: 3600, max: 31536000, zero: true},
	"Pool.max_host_uptime_secs":            {min: 3600, max: 31536000, zero: true},
	"Pool.uptime_spread_percent":           {min: 0, max: 50, def: 20},
	"RecoveryRung.action":                  {required: true},
	"RecoveryRung.command":                 {items: 128},
	"RecoveryRung.timeout_secs":            {min: 1, max: 3600, def: 60},
	"RecoveryRung.budget":                  {min: 1, max: 100, def: 1},
	"RecoveryRung.window_secs":             {min: 60, max: 2592000, def: 86400},
	"CircuitBreaker.percent":               {min: 1, max: 100, required: true},
	"CircuitBreaker.window_secs":           {min: 60, max: 86400, def: 600},
	"CircuitBreaker.min_bots":              {min: 1, max: 10000, def: 5},

	"BotsCfg.trusted_dimensions":                {items: 100},
	"BotsCfg.bot_group":                         {items: 10000},
	"BotsCfg.ip_list":                           {items: 1000},
	"IPList.name":                               {required: true},
	"IPList.network":                            {items: 10000, required: true},
	"BotGroup.bot_id_prefix":                    {items: 10000},
	"BotGroup.auth":                             {items: 16, required: true},
	"BotGroup.owners":                           {items: 100},
	"BotGroup.dimensions":                       {items: 256},
	"BotGroup.bot_config_script_content":        {refused: "is internal; name a file under scripts/ with bot_config_script"},
	"BotGroup.bot_config_script_rev":            {refused: "is internal; take it out"},
	"BotAuth.require_luci_machine_token":        {refused: "skep has no LUCI machine tokens; use require_token or require_client_certificate"},
	"BotAuth.require_luci_machine_token_secure": {refused: "skep has no LUCI machine tokens; use require_token or require_client_certificate"},
	"BotAuth.require_service_account":           {refused: "skep cannot check OAuth tokens; use require_token"},
	"BotAuth.GCE.project":                       {required: true},
	"BotAuth.Token.name":                        {items: 1000},
	"BotAuth.ClientCertificate.name":            {items: 1000},
	"BotAuth.ip_network":                        {items: 1000},

	"Configs.vms":                    {items: maxMachinePools},
	"Configs.project":                {items: 1000},
	"Config.lifetime":                {required: true},
	"Config.prefix":                  {required: true},
	"Config.revision":                {refused: "the server sets it; take it out"},
	"Config.current_amount":          {refused: "the server sets it; take it out"},
	"Config.owner":                   {items: 100},
	"Config.duts":                    {refused: "devices are set while it runs; take it out"},
	"Config.swarming_pools":          {items: 100},
	"Provider.zone":                  {items: 20},
	"Provider.max_replacing":         {min: 0, max: maxMachines},
	"Docker.image":                   {required: true},
	"Exec.command":                   {items: 100, required: true},
	"Exec.extra":                     {items: 100},
	"Demand.dimension":               {items: 256},
	"Demand.warm":                    {min: 0, max: maxMachines},
	"Demand.stopped":                 {min: 0, max: maxMachines},
	"Amount.change":                  {items: 100},
	"Amount.min":                     {min: 0, max: maxMachines},
	"Amount.max":                     {min: 0, max: maxMachines},
	"Schedule.length":                {required: true},
	"Schedule.start":                 {required: true},
	"Schedule.min":                   {min: 0, max: maxMachines},
	"Schedule.max":                   {min: 0, max: maxMachines},
	"TimeOfDay.day":                  {required: true},
	"TimeOfDay.time":                 {required: true},
	"VM.disk":                        {items: 128},
	"VM.metadata":                    {items: 200},
	"VM.network_interface":           {items: 8},
	"VM.service_account":             {items: 1},
	"VM.tag":                         {items: 64},
	"VM.label":                       {items: 60},
	"VM.force_send_fields":           {items: 100},
	"VM.null_fields":                 {items: 100},
	"Disk.size":                      {min: 0, max: 65536},
	"Disk.provisioned_iops":          {min: 0, max: 10_000_000},
	"Disk.provisioned_throughput":    {min: 0, max: 1_000_000},
	"Metadata.from_text":             {bytes: 129 + maxMetadata},
	"NetworkInterface.access_config": {items: 1},
	"ServiceAccount.email":           {required: true},
	"ServiceAccount.scope":           {items: 100, required: true},
	"Scheduling.node_affinity":       {items: 20},
	"NodeAffinity.key":               {required: true},
	"NodeAffinity.operator":          {required: true},
	"NodeAffinity.values":            {items: 100, required: true},

	"Project.metric":   {items: 100},
	"Project.project":  {required: true},
	"Project.region":   {items: 100},
	"Project.revision": {refused: "the server sets it; take it out"},
}

func ruleName(fd protoreflect.FieldDescriptor) string {
	return strings.TrimPrefix(string(fd.Parent().FullName()), string(fd.ParentFile().Package())+".") + "." + string(fd.Name())
}

// number returns what a number is: as given, or its default.
func number[T proto.Message](m T, field protoreflect.Name) int64 {
	fd := m.ProtoReflect().Descriptor().Fields().ByName(field)
	r := m.ProtoReflect()
	if r.Has(fd) {
		return r.Get(fd).Int()
	}
	return rules[ruleName(fd)].def
}

// maxText bounds every text. Bytes.
const maxText = 4096

// document is one file with where its fields stand, and what is wrong with it.
type document struct {
	file   string
	lines  lines
	faults Faults
	bad    map[string]bool // paths of values that could not be read: nothing more is said of them
}

// faultf notes a fault at a path; a field that is not there has the line of
// the message that lacks it.
func (d *document) faultf(path, format string, args ...any) { d.faultWith(path, nil, format, args...) }

// faultWith is faultf for a rule that other files take part in.
func (d *document) faultWith(path string, other []string, format string, args ...any) {
	if len(d.faults) > maxFaults || d.bad[path] {
		return
	}
	d.faults = append(d.faults, Fault{Other: other, File: d.file, Line: d.line(path), Field: path, Text: fmt.Sprintf(format, args...)})
}

func (d *document) line(path string) int {
	for path != "" {
		if n := d.lines[path]; n > 0 {
			return n
		}
		if n := d.lines[path+"[0]"]; n > 0 {
			return n
		}
		path = path[:max(0, strings.LastIndexByte(path, '.'))]
	}
	return 0
}

// given reports whether the file has a value at path, also one that is zero.
func (d *document) given(path string) bool { return d.lines[path] > 0 || d.lines[path+"[0]"] > 0 }

// check holds every field in m against its rule.
func (d *document) check(m protoreflect.Message, path string) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		at := join(path, string(fd.Name()))
		r := rules[ruleName(fd)]
		given := d.given(at)
		if !given {
			if r.required {
				d.faultf(at, "is required")
			}
			continue
		}
		if r.refused != "" {
			if !m.Has(fd) && !fd.IsList() && !fd.IsMap() { // false, or ""
				continue
			}
			d.faultf(at, "is not supported: %s", r.refused)
			continue
		}
		if fd.IsList() {
			l := m.Get(fd).List()
			if r.items > 0 && l.Len() > r.items {
				d.faultf(at, "has %d values, at most %d are allowed", l.Len(), r.items)
			}
			for j := range l.Len() {
				d.checkValue(fd, l.Get(j), fmt.Sprintf("%s[%d]", at, j))
			}
			continue
		}
		if fd.IsMap() {
			d.checkMap(fd, m.Get(fd).Map(), at)
			continue
		}
		d.checkValue(fd, m.Get(fd), at)
	}
}

// checkMap holds keys and values to the rules of every text.
func (d *document) checkMap(fd protoreflect.FieldDescriptor, entries protoreflect.Map, at string) {
	if r := rules[ruleName(fd)]; r.items > 0 && entries.Len() > r.items {
		d.faultf(at, "has %d entries, at most %d are allowed", entries.Len(), r.items)
	}
	entries.Range(func(key protoreflect.MapKey, v protoreflect.Value) bool {
		entryAt := entryPath(at, key)
		if key.String() == "" {
			d.faultf(entryAt, "has no key")
		}
		d.checkValue(fd.MapKey(), key.Value(), entryAt)
		d.checkValue(fd.MapValue(), v, entryAt)
		return true
	})
}

func (d *document) checkValue(fd protoreflect.FieldDescriptor, v protoreflect.Value, at string) {
	r := rules[ruleName(fd)]
	switch fd.Kind() {
	case protoreflect.MessageKind:
		d.check(v.Message(), at)
	case protoreflect.Int32Kind, protoreflect.Int64Kind:
		n := v.Int()
		if (r.min != 0 || r.max != 0) && (n < r.min || n > r.max) && (n != 0 || !r.zero) {
			or := ""
			if r.zero {
				or = "0 or "
			}
			d.faultf(at, "is %d, want %s%d to %d", n, or, r.min, r.max)
		}
	case protoreflect.EnumKind:
		if v.Enum() == 0 && (fd.IsList() || r.required) {
			d.faultf(at, "is %s, want %s", fd.Enum().Values().ByNumber(0).Name(), kindName(fd))
		}
	case protoreflect.StringKind:
		s := v.String()
		switch {
		case r.bytes > 0 && len(s) > r.bytes:
			d.faultf(at, "has %d bytes, at most %d are allowed", len(s), r.bytes)
		case r.bytes > 0 && s != "":
		case len(s) > maxText:
			d.faultf(at, "has %d bytes, at most %d are allowed", len(s), maxText)
		case strings.ContainsFunc(s, func(r rune) bool { return r < ' ' && r != '\n' && r != '\t' || r == 0x7f }):
			d.faultf(at, "holds control characters")
		case s == "" && (r.required || fd.IsList()):
			d.faultf(at, "is empty")
		}
	default:
	}
}
