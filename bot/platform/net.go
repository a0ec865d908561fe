package platform

import "net"

// localIP is the address from which this machine reaches others. No packet is
// sent: connecting a UDP socket only picks a route.
func localIP() string {
	c, err := net.Dial("udp4", "8.8.8.8:80")
	if err != nil {
		return "0.0.0.0"
	}
	defer c.Close()
	if a, ok := c.LocalAddr().(*net.UDPAddr); ok {
		return a.IP.String()
	}
	return "0.0.0.0"
}
