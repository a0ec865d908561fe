package foreign

import (
	"bytes"
	"encoding/binary"
)

// forwarder is a DLL for 64-bit Windows without code: its one function is that
// of another. Wine before 9 has no bcryptprimitives.dll, without which no
// program that Go made starts; what that offers, advapi32 has by another name.
func forwarder(dll, name, to string) []byte {
	const rva, size = 0x1000, 0x200 // of the one section, which starts after the headers
	var b bytes.Buffer
	put := func(vs ...any) {
		for _, v := range vs {
			_ = binary.Write(&b, binary.LittleEndian, v) // never fails
		}
	}
	dos := make([]byte, 64)
	copy(dos, "MZ")
	dos[60] = byte(len(dos))
	put(dos, []byte("PE\x00\x00"))
	put(uint16(0x8664), uint16(1), [3]uint32{}, uint16(240), uint16(0x2022))                              // machine, sections, size of what follows, DLL
	put(uint16(0x20b), uint16(0), uint32(0), uint32(size), [3]uint32{})                                   // 64 bits; sizes, no entry
	put(uint64(0x180000000), uint32(0x1000), uint32(size), [4]uint16{6}, uint16(6), uint16(0), uint32(0)) // base, alignments, versions
	put(uint32(2*0x1000), uint32(size), uint32(0), uint16(3), uint16(0x100))                              // sizes of image and headers, console
	put(uint64(1<<20), uint64(1<<12), uint64(1<<20), uint64(1<<12), uint32(0), uint32(16))                // stack, heap, directories
	put(uint32(rva), uint32(size), [30]uint32{})                                                          // the export directory is the first of them
	put([]byte(".edata\x00\x00"), [4]uint32{size, rva, size, size}, [3]uint32{}, uint32(0x40000040))      // readable data
	b.Write(make([]byte, size-b.Len()))
	dllAt := uint32(rva + 52) // after the directory and three tables of one entry
	nameAt := dllAt + uint32(len(dll)) + 1
	toAt := nameAt + uint32(len(name)) + 1
	put([3]uint32{}, dllAt, uint32(1), uint32(1), uint32(1), uint32(rva+40), uint32(rva+44), uint32(rva+48)) // one function, one name
	put(toAt, nameAt, uint32(0))                                                                             // an address within the section is a forwarder
	b.WriteString(dll + "\x00" + name + "\x00" + to + "\x00")
	b.Write(make([]byte, 2*size-b.Len()))
	return b.Bytes()
}
