use std::time::{Duration, Instant};

use anyhow::Result;
use rand::Rng as _;
use rand::rngs::StdRng;
use stepwell_tests::Host;

use crate::Soak;

/// Ends the host again and again, gently or not, and starts it on what it left.
pub(crate) async fn kills(
    soak: &Soak,
    host: &mut Host,
    time: Duration,
    pause: Duration,
    mut rng: StdRng,
) -> Result<()> {
    let started = Instant::now();
    while started.elapsed() < time {
        tokio::time::sleep(pause.mul_f64(rng.random_range(0.5..1.5))).await;
        soak.target.down();
        if rng.random_bool(0.6) {
            host.kill();
            soak.findings.count("host killed");
        } else {
            match host.stop()? {
                0 => soak.findings.count("host stopped"),
                code => soak
                    .findings
                    .wrong(format!("a stopped host ended with exit code {code}")),
            }
        }
        let begun = Instant::now();
        host.restart().await?;
        soak.target.up(host);
        if begun.elapsed() > Duration::from_secs(10) {
            soak.findings
                .wrong(format!("the host took {:?} to start", begun.elapsed()));
        }
    }
    Ok(())
}
