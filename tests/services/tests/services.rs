//! Each service starts, answers, stops and comes back with its data.
#![allow(clippy::unwrap_used, reason = "test code")]

use std::net::TcpStream;

use stepwell_test_services::{Kafka, Postgres, Redis};

fn reachable(address: &str) -> bool {
    TcpStream::connect(address).is_ok()
}

#[test]
fn postgres_keeps_its_data_over_a_restart() {
    let mut postgres = Postgres::start().unwrap();
    postgres.psql("CREATE TABLE kept (n int)").unwrap();
    postgres.stop();
    assert!(postgres.psql("SELECT 1").is_err());
    postgres.restart().unwrap();
    postgres.psql("INSERT INTO kept VALUES (1)").unwrap();
    assert!(postgres.psql("SELECT * FROM never_made").is_err());
}

#[test]
fn redis_stops_and_returns() {
    let mut redis = Redis::start().unwrap();
    let address = redis.url().replace("redis://", "").replace('/', "");
    assert!(reachable(&address));
    redis.stop();
    assert!(!reachable(&address));
    redis.restart().unwrap();
    assert!(reachable(&address));
}

#[test]
fn kafka_stops_and_returns() {
    let mut kafka = Kafka::start().unwrap();
    assert!(reachable(&kafka.brokers()));
    kafka.stop();
    assert!(!reachable(&kafka.brokers()));
    kafka.restart().unwrap();
    assert!(reachable(&kafka.brokers()));
}
