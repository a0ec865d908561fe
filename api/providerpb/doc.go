// Package providerpb holds the messages of config.Configuration, by which pools of machines are seen and resized, and of
// vms.cfg, which declares them: one form for both, as existing files and clients have it. Beside it are instancespb for
// instances.Instances and projectspb for projects.Projects and projects.cfg. The .proto files are the source (spec/provider.md
// §2 and §12; numbers from 1000 are ours); the Go files are generated (see package swarmingpb).
package providerpb
