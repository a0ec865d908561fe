package runner

import (
	"fmt"
	"os"
	"runtime"

	"github.com/skepdev/skep/internal/proc"
)

// isolated is task_runner's side of run_isolated.
type isolated struct {
	p      *proc.Process
	words  *os.File // its standard input
	news   *os.File // what it says; nil where there is no descriptor for it
	output *os.File // what the task writes
}

// startIsolated starts run_isolated, unless it was started already.
func startIsolated(exe string) (iso *isolated, err error) {
	if iso := startedEarly(); iso != nil {
		return iso, nil
	}
	var open []*os.File
	defer func() {
		if err != nil {
			for _, f := range open {
				_ = f.Close()
			}
		}
	}()
	pipe := func() (r, w *os.File) {
		if err == nil {
			if r, w, err = os.Pipe(); err == nil {
				open = append(open, r, w)
			}
		}
		return r, w
	}
	wordsR, words := pipe()
	output, outputW := pipe()
	news, newsW := pipe()
	if err != nil {
		return nil, err
	}
	files := []*os.File{wordsR, outputW, os.Stderr}
	if runtime.GOOS != "windows" {
		files = append(files, newsW, os.NewFile(runnerLifeFD, "life"))
	}
	p, err := proc.Start(&proc.Cmd{
		Path: exe, Args: []string{exe, "run_isolated"}, Files: files, NewGroup: true, Calm: true,
		Env: append(os.Environ(), "GOMAXPROCS=1"),
	})
	if err != nil {
		return nil, fmt.Errorf("start run_isolated: %w", err)
	}
	for _, f := range []*os.File{wordsR, outputW, newsW} {
		_ = f.Close()
	}
	if runtime.GOOS == "windows" {
		_ = news.Close()
		news = nil
	}
	return &isolated{p: p, words: words, news: news, output: output}, nil
}

// abandon lets a run_isolated that got no job go.
func (iso *isolated) abandon() {
	if iso != nil {
		_ = iso.words.Close()
		iso.p.Wait()
	}
}
