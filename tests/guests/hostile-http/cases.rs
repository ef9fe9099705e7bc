// What this function can do, by the path's first segment. The host's tests include this list too, and name a test for each.
cases! {
    hello about echo big spin nothing stall unfinished trap_early trap_midway trap_late linger
    endless blast headers deaf trailers overlong short error linger_streamed requests fields
    fields_gone
}
