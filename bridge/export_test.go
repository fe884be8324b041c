package bridge

// What the tests outside of the package look at.

var Negotiate = negotiate

func (c *Close) Body() []byte { return c.body() }
