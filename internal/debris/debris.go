// Package debris removes directories in which others have worked.
package debris
