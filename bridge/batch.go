package bridge

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"time"
	"unicode/utf8"

	"wsbridge/upstream"
)

// batchLine is one line of a batch.
type batchLine struct {
	To       string  `json:"to"`
	Body     *string `json:"body"`
	Base64   *string `json:"base64"`
	TTL      *string `json:"ttl"`
	Collapse *string `json:"collapse"`
	Confirm  *string `json:"confirm"`
	Except   any     `json:"except"` // ids with commas between them, or a list of them
}

// pushBatch sends a message for each line of the request, and answers each with a line, in their order. Both are streams: a line is sent when it has come,
// whatever the lines behind it are.
func (b *Bridge) pushBatch(w http.ResponseWriter, r *http.Request) {
	if !knownQuery(w, r) {
		return
	}
	if r.Header.Get("Idempotency-Key") != "" {
		problem(w, http.StatusBadRequest, "Idempotency-Key", "a batch has none: send such a message by itself")
		return
	}
	switch kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); kind {
	case "application/x-ndjson", "application/ndjson", "application/jsonl", "application/json", "text/plain", "application/x-www-form-urlencoded", "": // what curl says of it
	default:
		problem(w, http.StatusUnsupportedMediaType, "Content-Type", fmt.Sprintf("%q: send application/x-ndjson", kind))
		return
	}
	control := http.NewResponseController(w)
	control.EnableFullDuplex() // HTTP/1.1; where it is not to be had, the answers come behind the request
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Cache-Control", "no-store")

	answers := newBatchAnswers()
	written := make(chan struct{})
	go func() {
		defer close(written)
		answers.write(w, control)
	}()
	// A message of the largest size as base64 or with every byte escaped, and what stands around it.
	lines := bufio.NewReaderSize(r.Body, 64<<10)
	limit := b.config.PushMaxBody*6 + 16<<10
	for {
		if !lineAtHand(lines) {
			answers.pause()
		}
		line, err := readLine(lines, limit)
		if len(bytes.TrimSpace(line)) > 0 || errors.Is(err, errLongLine) {
			answers.add(b.batchLine(line, err))
		}
		if err != nil && !errors.Is(err, errLongLine) {
			break
		}
	}
	answers.end()
	<-written
}

// lineAtHand reports whether the next line can be read without waiting.
func lineAtHand(r *bufio.Reader) bool {
	next, _ := r.Peek(r.Buffered())
	return bytes.IndexByte(next, '\n') >= 0
}

var errLongLine = errors.New("the line is too long")

// readLine returns the next line, which holds until the next is read; one that is too long it passes over. With the last one comes the reader's error.
func readLine(r *bufio.Reader, limit int64) ([]byte, error) {
	var line []byte
	long := false
	for {
		part, err := r.ReadSlice('\n')
		switch long = long || int64(len(line)+len(part)) > limit; {
		case long:
			line = nil
		case line == nil && err == nil:
			line = part // where it lies
		default:
			line = append(line, part...)
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case long && (err == nil || errors.Is(err, io.EOF)):
			return nil, errLongLine
		}
		return line, err
	}
}

// batchLine sends what a line says, and returns the verdict, or what it will come from.
func (b *Bridge) batchLine(line []byte, failure error) pendingVerdict {
	now := func(v verdict) pendingVerdict { return pendingVerdict{verdict: v} }
	if failure != nil && !errors.Is(failure, io.EOF) {
		if errors.Is(failure, errLongLine) {
			return now(verdict{status: http.StatusRequestEntityTooLarge, detail: "the line is too long for a message of WSBRIDGE_PUSH_MAX_BODY"})
		}
		return now(verdict{status: http.StatusBadRequest, detail: "the line breaks off"})
	}
	t, message, o, v := b.parseLine(line)
	if v.status != 0 {
		return now(v)
	}
	p := b.newParcel([]upstream.Payload{message}, o, time.Now())
	var r result
	if next := b.here(func() { r = b.dispatch(t, p) }); next != nil {
		return now(next.line(bytes.Clone(line))) // who sends it may look at it longer than it holds
	}
	if o.confirm == 0 {
		return now(b.verdict(t, r))
	}
	done := make(chan verdict, 1)
	receipt := p.receipt                                                  // and not p, which would be garbage for each line, with a receipt or without
	go func() { done <- b.verdict(t, r.confirmed(receipt, o.confirm)) }() // ends with the confirmation's time
	return pendingVerdict{later: done}
}

// parseLine reads a line. A verdict with a status says what is wrong with it.
func (b *Bridge) parseLine(line []byte) (t target, message upstream.Payload, o options, v verdict) {
	bad := func(status int, field, detail string) (target, upstream.Payload, options, verdict) {
		return target{}, upstream.Payload{}, options{}, verdict{status: status, field: field, detail: detail}
	}
	if !utf8.Valid(line) {
		return bad(http.StatusBadRequest, "", "the line is not UTF-8: send binary data as base64")
	}
	var l batchLine
	to, body, plain := plainLine(line)
	if plain {
		l.To, message.Data = string(to), body
	} else {
		decoder := json.NewDecoder(bytes.NewReader(line))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&l); err != nil {
			return bad(http.StatusBadRequest, "", "the line is no object of JSON with to, body or base64, ttl, collapse, confirm and except: "+err.Error())
		}
		if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
			return bad(http.StatusBadRequest, "", "there is more than one object in the line")
		}
	}
	t, err := parseTarget(l.To)
	if err != nil {
		return bad(http.StatusBadRequest, "to", err.Error())
	}
	switch {
	case plain:
	case l.Body != nil && l.Base64 == nil:
		message.Data = []byte(*l.Body)
	case l.Base64 != nil && l.Body == nil:
		if message.Data, err = base64.StdEncoding.DecodeString(*l.Base64); err != nil {
			return bad(http.StatusBadRequest, "base64", "what base64 has is not in base64")
		}
		message.Binary = true
	default:
		return bad(http.StatusBadRequest, "body", "a line has either a body (text) or base64 (binary)")
	}
	if int64(len(message.Data)) > b.config.PushMaxBody {
		return bad(http.StatusRequestEntityTooLarge, "body", fmt.Sprintf("the message is larger than %d bytes (WSBRIDGE_PUSH_MAX_BODY)", b.config.PushMaxBody))
	}
	if plain {
		return t, message, o, verdict{}
	}
	except, err := l.excepted()
	if err == nil && except != nil && t.kind == toOne {
		err = errors.New("except is for many")
	}
	if err != nil {
		return bad(http.StatusBadRequest, "except", err.Error())
	}
	now := time.Now()
	for name, value := range map[string]*string{"ttl": l.TTL, "collapse": l.Collapse, "confirm": l.Confirm, "except": except} {
		if value == nil {
			continue
		}
		if err := o.parse(name, *value, now); err != nil {
			return bad(http.StatusBadRequest, name, err.Error())
		}
	}
	return t, message, o, verdict{}
}

// plainLine reads a line that has a to and a body and nothing that would have to be decoded, as most have: a third of what a push in a batch costs was to read its JSON.
// The line is UTF-8, and what is returned are parts of it.
func plainLine(line []byte) (to, body []byte, ok bool) {
	blanks := func() {
		for len(line) > 0 && (line[0] == ' ' || line[0] == '\t' || line[0] == '\r' || line[0] == '\n') {
			line = line[1:]
		}
	}
	next := func(token string) bool {
		blanks()
		if len(line) < len(token) || string(line[:len(token)]) != token {
			return false
		}
		line = line[len(token):]
		return true
	}
	text := func() ([]byte, bool) {
		for i, b := range line {
			switch {
			case b == '"':
				s := line[:i]
				line = line[i+1:]
				return s, true
			case b == '\\' || b < ' ':
				return nil, false
			}
		}
		return nil, false
	}
	if !next("{") || !next(`"to"`) || !next(":") || !next(`"`) {
		return nil, nil, false
	}
	if to, ok = text(); !ok || !next(",") || !next(`"body"`) || !next(":") || !next(`"`) {
		return nil, nil, false
	}
	if body, ok = text(); !ok || !next("}") {
		return nil, nil, false
	}
	blanks()
	return to, body, len(line) == 0
}

// excepted returns the ids as a query has them, or nil.
func (l *batchLine) excepted() (*string, error) {
	switch ids := l.Except.(type) {
	case nil:
		return nil, nil
	case string:
		return &ids, nil
	case []any:
		list := ""
		for _, id := range ids {
			one, ok := id.(string)
			if !ok {
				return nil, errors.New("except is a list of ids")
			}
			list += one + ","
		}
		return &list, nil
	}
	return nil, errors.New("except is a list of ids")
}
