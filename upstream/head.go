package upstream

import (
	"net/http"
	"strings"
	"sync"
)

// head is that of an answer.
type head struct {
	code   int    // the status
	status string // code and reason
	fields fields
	length int64 // of the body, in bytes; negative where that is not known beforehand
	close  bool  // the connection ends behind it

	first [8]Field // where the fields of most answers are
}

// heads are those of answers that have been read: see Client.post.
var heads = sync.Pool{New: func() any { return new(head) }}

// newHead returns that of a response.
func newHead(r *http.Response) *head {
	h := &head{code: r.StatusCode, status: r.Status, length: r.ContentLength, close: r.Close}
	h.fields = h.first[:0]
	for name, values := range r.Header {
		for _, value := range values {
			h.fields = append(h.fields, Field{name, value})
		}
	}
	return h
}

// fields are the header fields of an answer, their names in canonical form, those of one name in the order in which they came. They are few: to look through them
// costs less than to make a map.
type fields []Field

// get returns the first value of the field, or "".
func (f fields) get(name string) string {
	for i := range f {
		if f[i].Name == name {
			return f[i].Value
		}
	}
	return ""
}

// values returns all of them.
func (f fields) values(name string) (values []string) {
	for i := range f {
		if f[i].Name == name {
			values = append(values, f[i].Value)
		}
	}
	return values
}

// ours returns those whose names begin with Ws-.
func (f fields) ours() (ours fields) {
	for i := range f {
		if strings.HasPrefix(f[i].Name, "Ws-") {
			ours = append(ours, f[i])
		}
	}
	return ours
}
