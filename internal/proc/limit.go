package proc

// Limit is one thing that a place's processes may not exceed, told to the
// controller that watches over it. Its files differ between the versions of
// cgroups; on a hybrid host each controller is of one or the other.
type Limit struct {
	Controller string    // as cgroup v1 calls it, "blkio" and not "io"
	V1, V2     []Setting // written in this order; nothing = that version cannot do it
}

// Setting is what is written into a file of a cgroup.
type Setting struct{ File, Value string }
