package bridge

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"
)

// maxList is the most connections that one GET lists.
const maxList = 1000

// view is a connection as the push side shows it.
type view struct {
	ID          string    `json:"id"`
	Opening     bool      `json:"opening,omitempty"`
	User        string    `json:"user,omitempty"`
	Groups      []string  `json:"groups"`
	Address     string    `json:"address"`
	Path        string    `json:"path"`
	Subprotocol string    `json:"subprotocol,omitempty"`
	Since       time.Time `json:"since"`
	LastSeen    time.Time `json:"last_seen"`
	Queue       struct {
		Messages int   `json:"messages"`
		Bytes    int64 `json:"bytes"`
	} `json:"queue"`
	MessagesIn  uint64 `json:"messages_in"`
	MessagesOut uint64 `json:"messages_out"`
	BytesIn     uint64 `json:"bytes_in"`
	BytesOut    uint64 `json:"bytes_out"`
	Dropped     uint64 `json:"dropped"`
}

func (c *conn) view() view {
	c.mu.Lock()
	defer c.mu.Unlock()
	r, h := &c.record, c.handshake()
	v := view{
		ID: r.ID, Opening: c.opening && !c.accepted, User: r.User, Groups: append([]string{}, r.Groups...), Address: h.Address, Path: h.Path,
		Subprotocol: r.Subprotocol, Since: r.Since.UTC(), LastSeen: r.Since.UTC(),
		MessagesIn: r.MessagesIn, MessagesOut: r.MessagesOut, BytesIn: r.BytesIn, BytesOut: r.BytesOut, Dropped: r.Dropped,
	}
	if heard := c.heard.Load(); heard != 0 {
		v.LastSeen = time.Unix(0, heard).UTC()
	}
	if c.work != nil {
		for _, f := range c.out.messages {
			v.Queue.Messages += f.messages
		}
		v.Queue.Bytes = c.out.bytes
	}
	return v
}

func (b *Bridge) pushShow(w http.ResponseWriter, r *http.Request) {
	if !knownQuery(w, r) {
		return
	}
	if c := b.registry.find(r.PathValue("id")); c != nil {
		answer(w, http.StatusOK, c.view())
		return
	}
	gone(w, r)
}

// pushList lists the connections of a user, of a group or all, those that are open the longest first. Their ids sort by time, so a listing goes on
// behind the last id it has shown, whatever has come and gone since.
func (b *Bridge) pushList(w http.ResponseWriter, r *http.Request) {
	t, ok := named(w, r)
	if !ok {
		return
	}
	known := []string{"limit", "after"}
	if t.kind == toAll {
		known = append(known, "user", "group")
	}
	if !knownQuery(w, r, known...) {
		return
	}
	query := r.URL.Query()
	var group string
	if t.kind == toAll {
		user := target{kind: toUser, name: query.Get("user")}
		inGroup := target{kind: toGroup, name: query.Get("group")}
		for field, filter := range map[string]target{"user": user, "group": inGroup} {
			if filter.name == "" {
				continue
			}
			if err := filter.valid(); err != nil {
				problem(w, http.StatusBadRequest, field, err.Error())
				return
			}
		}
		switch {
		case user.name != "":
			t, group = user, inGroup.name
		case inGroup.name != "":
			t = inGroup
		}
	}
	limit := 100
	if value := query.Get("limit"); value != "" {
		var err error
		if limit, err = strconv.Atoi(value); err != nil || limit < 1 || limit > maxList {
			problem(w, http.StatusBadRequest, "limit", fmt.Sprintf("limit %q: use a number from 1 to %d", value, maxList))
			return
		}
	}
	page := struct {
		Connections []view `json:"connections"`
		Next        string `json:"next,omitempty"`
	}{Connections: []view{}}
	for _, c := range b.registry.after(t, query.Get("after")) {
		v := c.view()
		if group != "" && !slices.Contains(v.Groups, group) {
			continue
		}
		if len(page.Connections) == limit {
			page.Next = page.Connections[limit-1].ID
			break
		}
		page.Connections = append(page.Connections, v)
	}
	answer(w, http.StatusOK, page)
}
