package platform

import "golang.org/x/sys/windows"

func statSpace(path string) (space, error) {
	p, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return space{}, err
	}
	var s space
	err = windows.GetDiskFreeSpaceEx(p, &s.free, &s.total, nil)
	return s, err
}
