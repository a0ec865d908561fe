// Package ownengine runs a container engine of one's own, a real dockerd that
// shares nothing with that of the host, for demonstrations and tests. It is for
// Linux and root.
package ownengine
