// Package projectspb holds the messages of projects.Projects and of projects.cfg; see package providerpb.
package projectspb
