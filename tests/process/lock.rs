//! One data directory, one broker.

use crate::{
    broker::{Broker, start_fails},
    writer::Writer,
};

#[test]
fn second_broker_on_the_same_data_is_refused_and_the_first_goes_on() {
    let broker = Broker::start("--shards 1");
    broker.create_topic("locked", 1);
    let mut writer = Writer::new(broker.address, "locked", 1, 1, 0);
    writer.write(10);
    let other = millrace_bench::server::free_address().unwrap();
    let command = broker.command().replace(&broker.address.to_string(), &other.to_string());
    let said = start_fails(&command);
    assert!(said.contains("in use") && said.contains(&broker.data().display().to_string()), "not clear: {said}");
    writer.write(10);
    let tally = broker.verify("locked", 1, &writer.acknowledged);
    assert_eq!(tally.records, 60);
}

#[test]
fn lock_of_a_killed_broker_is_gone() {
    let mut broker = Broker::start("--shards 1");
    broker.kill();
    broker.restart();
}
