package backoff

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestNextGrowsToTheCap(t *testing.T) {
	b := Exponential{Min: time.Second, Max: 10 * time.Second}
	for i, d := range []time.Duration{1, 2, 4, 8, 10, 10} {
		d *= time.Second
		if got := b.Next(); got < d/2 || got > d {
			t.Errorf("pause %d = %v, want %v to %v", i, got, d/2, d)
		}
	}
	b.Reset()
	if got := b.Next(); got > time.Second {
		t.Errorf("pause after success = %v, want at most %v", got, time.Second)
	}
}

func TestZeroValueAndTinyBounds(t *testing.T) {
	var zero Exponential
	if got := zero.Next(); got < 50*time.Millisecond || got > 100*time.Millisecond {
		t.Errorf("zero value: first pause %v, want 50 to 100 ms", got)
	}
	tiny := Exponential{Min: 1, Max: 1}
	for range 5 {
		if got := tiny.Next(); got < 0 || got > 1 {
			t.Errorf("pause %v, want 0 or 1 ns", got)
		}
	}
}

func TestSleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := Exponential{Min: time.Second, Max: time.Minute}
		start := time.Now()
		if err := b.Sleep(t.Context(), 5*time.Second); err != nil {
			t.Fatal(err)
		}
		if got := time.Since(start); got != 5*time.Second {
			t.Errorf("slept %v, want the floor of 5 s", got)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if err := b.Sleep(ctx, time.Hour); err != context.DeadlineExceeded {
			t.Errorf("err = %v, want %v", err, context.DeadlineExceeded)
		}
	})
}
