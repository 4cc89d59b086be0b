//! Input against real X servers and a real browser.
