package bridge

import (
	"net/http"
	"strconv"

	"wsbridge/upstream"
)

// pushMember names or unnames a connection's user, or makes or ends its membership in a group.
func (b *Bridge) pushMember(w http.ResponseWriter, r *http.Request) {
	if !knownQuery(w, r) {
		return
	}
	user, group := r.PathValue("user"), r.PathValue("group")
	field, t := "user", target{kind: toUser, name: user}
	if group != "" {
		field, t = "group", target{kind: toGroup, name: group}
	}
	if err := t.valid(); err != nil {
		problem(w, http.StatusBadRequest, field, err.Error())
		return
	}
	c := b.registry.find(r.PathValue("id"))
	if c == nil || !c.change(r.Method == http.MethodPut, t) {
		gone(w, r)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// change puts a connection among those of a target, or takes it from them. It returns false when the connection has ended.
func (c *conn) change(put bool, t target) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.hasEnded():
		return false
	case t.kind == toGroup && put:
		c.join(t.name)
	case t.kind == toGroup:
		c.leaveGroup(t.name)
	case put:
		c.setUser(t.name)
	case c.record.User == t.name:
		c.setUser("")
	}
	if c.arriving {
		c.busy().changes = append(c.changes, func() { c.change(put, t) })
	} else {
		c.resave()
	}
	return true
}

// pushClose closes a connection, or those of a user or a group.
func (b *Bridge) pushClose(w http.ResponseWriter, r *http.Request) {
	t, ok := named(w, r)
	if !ok || !knownQuery(w, r, "code", "reason") {
		return
	}
	code, reason := 1000, r.URL.Query().Get("reason")
	if value := r.URL.Query().Get("code"); value != "" {
		var err error
		if code, err = strconv.Atoi(value); err != nil {
			problem(w, http.StatusBadRequest, "code", "close code "+strconv.Quote(value)+" is no number")
			return
		}
	}
	if err := upstream.ValidClose(code, reason); err != nil {
		field := "code"
		if upstream.ValidClose(code, "") == nil {
			field = "reason"
		}
		problem(w, http.StatusBadRequest, field, err.Error())
		return
	}
	conns := b.members(t)
	for _, c := range conns {
		c.end(closeByBackend(code, reason))
	}
	switch {
	case t.kind != toOne:
		answer(w, http.StatusAccepted, struct {
			Matched int `json:"matched"`
		}{len(conns)})
	case len(conns) == 0:
		gone(w, r)
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}
