//go:build unix

package proc

import "runtime"

// OnThread runs f on a thread that ends with it, and returns when it has.
func OnThread(f func()) {
	done := make(chan struct{})
	onThread(func() {
		defer close(done)
		f()
	})
	<-done
}

// onThread runs f on a thread that ends with it, so that f may spoil the
// thread: its mounts, its cgroup, its rights. The process's first thread is
// never taken: it cannot end, and /proc/self, the whole process's to anyone who
// reads there, shows what that thread sees.
func onThread(f func()) {
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if !firstThread() {
			f()
			return
		}
		taken := make(chan struct{})
		go func() { // cannot get this thread, which waits for it to have one
			runtime.LockOSThread()
			close(taken)
			f()
		}()
		<-taken
		runtime.UnlockOSThread()
	}()
}
