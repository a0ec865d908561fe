// Package instancespb holds the messages of instances.Instances; see package providerpb.
package instancespb
