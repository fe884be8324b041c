package bridge

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"sync"
	"time"

	"wsbridge/upstream"
)

// Opcodes of RFC 6455, 5.2.
const (
	opContinuation = 0x0
	opText         = 0x1
	opBinary       = 0x2
	opClose        = 0x8
	opPing         = 0x9
	opPong         = 0xA
)

const (
	finBit  = 0x80
	rsv1Bit = 0x40 // RFC 7692, 6: the message is compressed
)

// minDeflate is the smallest payload that is compressed, in bytes: below it the frame hardly shrinks.
const minDeflate = 128

// frame is one or several whole messages as they go on the wire. We write frames ourselves, since gorilla cuts compressed messages
// into fragments that some browsers stumble over, and since a frame that stands ready can be queued, dropped and shared.
type frame struct {
	wire     []byte
	messages int
	payload  int      // bytes of the messages, before compression
	terms    *options // nil for most
	receipt  *receipt // of a push that waits for the client's word
	owed     *owed    // the message that it answers, where that is kept
	control  bool     // a ping or pong, or the rest of one
}

// expired reports whether the frame was to be written before now.
func (f *frame) expired(now time.Time) bool {
	return f.terms != nil && !f.terms.until.IsZero() && !now.Before(f.terms.until)
}

// key is what later frames take this one's place by, or empty.
func (f *frame) key() string {
	if f.terms == nil {
		return ""
	}
	return f.terms.collapse
}

// cost is what the frame counts against the send buffer: a queued empty message takes memory too.
func (f frame) cost() int64 { return int64(max(len(f.wire), 64)) }

// frames builds frames, for messages that are compressed where the connection's window (bits, 0 for none) allows.
type frames struct {
	writers sync.Pool // of *flate.Writer
}

func (fs *frames) build(messages []upstream.Payload, window int) frame {
	f := frame{messages: len(messages)}
	size := 0
	for _, m := range messages {
		size += 10 + len(m.Data)
		f.payload += len(m.Data)
	}
	f.wire = make([]byte, 0, size)
	for _, m := range messages {
		op := byte(finBit | opText)
		if m.Binary {
			op = finBit | opBinary
		}
		data := m.Data
		// Without context takeover a message refers back to itself alone, so one no longer than the window never leaves it. Go's
		// compressor knows no smaller window than 32 KiB: longer messages go as they are.
		if window > 0 && len(data) >= minDeflate && (window == 15 || len(data) <= 1<<window) {
			if small := fs.deflate(data); len(small) < len(data) {
				op, data = op|rsv1Bit, small
			}
		}
		f.wire = append(appendHeader(f.wire, op, len(data)), data...)
	}
	return f
}

// deflate returns data as RFC 7692, 7.2.1 wants it: one flushed block, without its last four bytes.
func (fs *frames) deflate(data []byte) []byte {
	var out bytes.Buffer
	out.Grow(len(data)/2 + 64)
	w, _ := fs.writers.Get().(*flate.Writer)
	if w == nil {
		w, _ = flate.NewWriter(&out, flate.BestSpeed) // the level is valid
	} else {
		w.Reset(&out)
	}
	w.Write(data) // a bytes.Buffer doesn't fail
	w.Flush()
	fs.writers.Put(w)
	return bytes.TrimSuffix(out.Bytes(), []byte{0, 0, 0xff, 0xff})
}

// controlFrame appends a control frame; the payload is at most 125 bytes.
func controlFrame(dst []byte, op byte, payload []byte) []byte {
	return append(appendHeader(dst, finBit|op, len(payload)), payload...)
}

// appendHeader appends the header of a server's frame (RFC 6455, 5.2): the shortest length, no mask.
func appendHeader(dst []byte, first byte, length int) []byte {
	switch {
	case length <= 125:
		return append(dst, first, byte(length))
	case length <= 0xffff:
		return binary.BigEndian.AppendUint16(append(dst, first, 126), uint16(length))
	default:
		return binary.BigEndian.AppendUint64(append(dst, first, 127), uint64(length))
	}
}

// unmasked returns the payload as it was before the client masked it (RFC 6455, 5.3).
func unmasked(mask [4]byte, payload []byte) []byte {
	data := make([]byte, len(payload))
	for i, b := range payload {
		data[i] = b ^ mask[i%4]
	}
	return data
}
