//go:build !linux

package bridge

import "errors"

// Nothing is parked where there is no keeper.

type parking struct{}

func (*parking) add(int, *conn) error { return errors.ErrUnsupported }

func (*parking) parked() int { return 0 }

func (*parking) remove(int) {}
