package runner

// isTaskFault: a process that Windows does not start was asked for wrongly.
func isTaskFault(error) bool { return true }
