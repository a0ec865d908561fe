package runner

func botMain([]string) int { return 0 }
