package provider

import (
	"encoding/json"
	"fmt"
	"time"
)

// windowJSON is a Window as the store keeps it: with the name of its zone.
type windowJSON struct {
	Day          time.Weekday
	Hour, Minute int
	Location     string
	Length       time.Duration
	Min, Max     int
}

// MarshalJSON writes the zone by its name.
func (w Window) MarshalJSON() ([]byte, error) {
	return json.Marshal(windowJSON{w.Day, w.Hour, w.Minute, w.Location.String(), w.Length, w.Min, w.Max})
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (w *Window) UnmarshalJSON(b []byte) error {
	var j windowJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	loc, err := time.LoadLocation(j.Location)
	if err != nil {
		return fmt.Errorf("window: %w", err)
	}
	*w = Window{j.Day, j.Hour, j.Minute, loc, j.Length, j.Min, j.Max}
	return nil
}
