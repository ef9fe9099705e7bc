use std::path::Path;

use crate::host::Host;
use crate::place::Place;
use crate::report::say;

/// What to try next, each line as it can be typed here.
pub(crate) fn print(place: &Place, host: &Host) {
    let Host { data, admin, kafka } = host;
    let programs = place.stepwell.parent().unwrap_or(Path::new(".")).display();
    // The default needs no variable.
    let url = if admin.ends_with("127.0.0.1:8081") {
        String::new()
    } else {
        format!(" STEPWELL_URL={admin}")
    };
    say!(
        "
the host goes on running; to try next:

  curl --data-binary @demo-data/samples/3.png {data}/digits/mine
  curl --data-binary @demo-data/samples/8.pgm {data}/digits/mine
  curl '{data}/hello/world?from=demo'

  kcat -P -b {kafka} -t digits -k mine demo-data/samples/5.png
  kcat -C -b {kafka} -t answers -o beginning -qef '%k %s\\n' | grep ^mine

  export PATH=\"{programs}:$PATH\"{url}
  stepwell invoke digit-reader --data @demo-data/samples/7.png
  stepwell pipeline show digit-reader
  stepwell model show digits
  stepwell logs --pipeline index-scans
  stepwell plugin list

  metrics {admin}/metrics   health {admin}/readyz   API {admin}/docs
  configuration demo-data/stepwell.toml   log demo-data/host.log

  make demo-stop   stops it"
    );
}
