package readahead

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestCopy(t *testing.T) {
	data := make([]byte, 3*size+size/2)
	_, _ = rand.NewChaCha8([32]byte{}).Read(data)
	broken := errors.New("broken")
	for name, tc := range map[string]struct {
		r    io.Reader
		want []byte
		err  error
	}{
		"nothing":           {bytes.NewReader(nil), nil, nil},
		"less than a piece": {bytes.NewReader(data[:100]), data[:100], nil},
		"one piece":         {bytes.NewReader(data[:size]), data[:size], nil},
		"more than fits":    {io.MultiReader(bytes.NewReader(data), bytes.NewReader(data)), append(bytes.Clone(data), data...), nil},
		"in drops":          {iotest.HalfReader(bytes.NewReader(data)), data, nil},
		"end with the data": {iotest.DataErrReader(bytes.NewReader(data)), data, nil},
		"cut off":           {io.MultiReader(bytes.NewReader(data[:100]), iotest.ErrReader(io.ErrUnexpectedEOF)), data[:100], io.ErrUnexpectedEOF},
		"broken":            {io.MultiReader(bytes.NewReader(data), iotest.ErrReader(broken)), data, broken},
	} {
		t.Run(name, func(t *testing.T) {
			var one, two bytes.Buffer
			n, err := Copy(tc.r, func() { t.Error("stopped") }, &one, &two)
			if n != int64(len(tc.want)) || !errors.Is(err, tc.err) || !bytes.Equal(one.Bytes(), tc.want) || !bytes.Equal(two.Bytes(), tc.want) {
				t.Errorf("%d bytes, %v; %d and %d", n, err, one.Len(), two.Len())
			}
		})
	}
}

// A stage that fails ends a reading that would wait for ever, or go on.
func TestCopyStops(t *testing.T) {
	full := errors.New("full")
	for _, before := range []int{0, size, 10 * size} {
		for _, first := range []bool{true, false} {
			r, w := io.Pipe()
			go func() {
				_, _ = w.Write(make([]byte, before+size)) // and then it waits
			}()
			stages := []io.Writer{&limited{before, full}, io.Discard}
			if !first {
				stages[0], stages[1] = stages[1], stages[0]
			}
			stopped := 0
			n, err := Copy(r, func() { stopped++; _ = r.CloseWithError(io.ErrClosedPipe) }, stages...)
			// What is on its way behind a stage that failed does not arrive.
			if n > int64(before) || n < int64(before) && !first || !errors.Is(err, full) || stopped != 1 {
				t.Errorf("%d bytes, %v, stopped %d times", n, err, stopped)
			}
		}
	}
	if n, err := Copy(endless{}, func() {}, &limited{size, full}); n != size || !errors.Is(err, full) {
		t.Errorf("of what never ends: %d bytes, %v", n, err)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

type limited struct {
	left int
	err  error
}

func (l *limited) Write(p []byte) (int, error) {
	if l.left -= len(p); l.left < 0 {
		return 0, l.err
	}
	return len(p), nil
}
