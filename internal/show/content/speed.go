package content

import "context"

func speed(context.Context, options) error { return errTodo }
