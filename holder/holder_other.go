//go:build !linux

package holder

import (
	"context"
	"errors"
	"net"
)

var errNotHere = errors.New("connections outlive their process on Linux alone: set WSBRIDGE_HOLDER=off")

// Run returns an error: there is no holder on this system.
func Run(context.Context, Config) (exit int, err error) { return 0, errNotHere }

// Reload returns an error: there is no holder on this system.
func Reload(context.Context, int, []string) error { return errNotHere }

// Status returns an error: there is no holder on this system.
func Status(context.Context, int) (StatusReport, error) { return StatusReport{}, errNotHere }

// Link is a worker's end of the link to its holder. On this system there is none.
type Link struct{}

// Attach returns false: no holder has started this process.
func Attach() (*Link, bool, error) { return nil, false, nil }

// Serial returns 0.
func (*Link) Serial() uint32 { return 0 }

// Table returns nil.
func (*Link) Table() *Table { return nil }

// Claim returns false.
func (*Link) Claim(string, string) bool { return false }

// Listener returns an error.
func (*Link) Listener(string, string) (net.Listener, error) { return nil, errNotHere }

// Unclaimed returns nil.
func (*Link) Unclaimed() []string { return nil }

// CloseListeners does nothing.
func (*Link) CloseListeners() {}

// KeepListener returns an error.
func (*Link) KeepListener(string, string, net.Listener) error { return errNotHere }

// Ready returns an error.
func (*Link) Ready() error { return errNotHere }

// Failed returns an error.
func (*Link) Failed(error) error { return errNotHere }

// Serving returns an error.
func (*Link) Serving(string) error { return errNotHere }

// Suspended returns an error.
func (*Link) Suspended(int) error { return errNotHere }

// Busy returns an error.
func (*Link) Busy(int) error { return errNotHere }

// Release returns an error.
func (*Link) Release(uint32) error { return errNotHere }

// Keep returns an error.
func (*Link) Keep(uint32, uint32, int) error { return errNotHere }

// GaveBack returns an error.
func (*Link) GaveBack(bool, []string) error { return errNotHere }

// Receive returns an error.
func (*Link) Receive() (Order, error) { return Order{}, errNotHere }
