//! Outbound HTTP of guests: where they may go, and how.
