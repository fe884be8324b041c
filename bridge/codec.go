package bridge

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"wsbridge/upstream"
)

// recordVersion is that of the records this program writes, and the only one it reads.
const recordVersion = 1

// encode appends the record to p in a form that another version of this program can read, or knows that it can't. What has a place of its own in the
// connection's slot (its sequence, position and counters) is not in it.
func (r *record) encode(p []byte) []byte {
	h := r.Handshake
	p = append(p, recordVersion)
	text := func(s string) {
		p = binary.AppendUvarint(p, uint64(len(s)))
		p = append(p, s...)
	}
	text(r.ID)
	p = binary.LittleEndian.AppendUint64(p, uint64(r.Since.UnixNano()))
	for _, s := range [...]string{h.Path, h.Query, h.RequestHost, h.Cookie, h.ForwardedFor, h.Proto, h.Host, h.Address, r.Subprotocol, r.User, r.State} {
		text(s)
	}
	p = binary.AppendUvarint(p, uint64(r.Window))
	p = binary.AppendUvarint(p, uint64(len(h.Header)))
	for _, field := range h.Header {
		text(field.Name)
		text(field.Value)
	}
	p = binary.AppendUvarint(p, uint64(len(r.Groups)))
	for _, group := range r.Groups {
		text(group)
	}
	return p
}

var errRecord = errors.New("the connection's record is damaged")

// decodeRecord returns the record that encode has written.
func decodeRecord(p []byte) (r record, err error) {
	if len(p) == 0 || p[0] != recordVersion {
		return r, fmt.Errorf("the connection's record is of another version than %d", recordVersion)
	}
	rest := string(p[1:]) // all its strings are parts of this one
	number := func() uint64 {
		n, size := binary.Uvarint([]byte(rest[:min(len(rest), binary.MaxVarintLen64)]))
		if size <= 0 {
			rest, err = "", errRecord
			return 0
		}
		rest = rest[size:]
		return n
	}
	count := func() uint64 { // of what takes a byte each, at least
		n := number()
		if n > uint64(len(rest)) {
			rest, err = "", errRecord
			return 0
		}
		return n
	}
	text := func() string {
		n := count()
		s := rest[:n]
		rest = rest[n:]
		return s
	}
	r.ID = text()
	if len(rest) < 8 {
		return r, errRecord
	}
	r.Since = time.Unix(0, int64(binary.LittleEndian.Uint64([]byte(rest[:8]))))
	rest = rest[8:]
	h := new(upstream.Handshake)
	r.Handshake = h
	for _, s := range [...]*string{&h.Path, &h.Query, &h.RequestHost, &h.Cookie, &h.ForwardedFor, &h.Proto, &h.Host, &h.Address, &r.Subprotocol, &r.User, &r.State} {
		*s = text()
	}
	r.Window = int(number())
	if n := count(); n > 0 {
		h.Header = make([]upstream.Field, n)
		for i := range h.Header {
			h.Header[i] = upstream.Field{Name: text(), Value: text()}
		}
	}
	if n := count(); n > 0 {
		r.Groups = make([]string, n)
		for i := range r.Groups {
			r.Groups[i] = text()
		}
	}
	if err == nil && (rest != "" || r.ID == "") {
		err = errRecord
	}
	return r, err
}
