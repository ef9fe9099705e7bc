// What this guest can do, by the event's type. The host's tests include this list too, and name a test for each.
cases! {
    echo drop repeat status extensions invalid unavailable failed
    spin spin_for call_host sleep allocate try_allocate reach recurse trap panic exit exit_zero
    output events attribute log blast zeroes random
    handles pollables poll_nothing fields bodies shout header
    environment config connect files fetch
}
