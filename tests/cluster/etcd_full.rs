//! An etcd whose space is used up: it answers, keeps leases alive, and takes no writes.

use std::{process::Command, time::Duration};

use millrace_client::TopicSpec;
use millrace_replica::cluster::{
    etcd::{Etcd, EtcdOptions, EtcdTls},
    store::{Store, StoreError, Transaction},
};

use crate::{load::Load, rig::Rig};

const QUOTA: &str = "--quota-backend-bytes 8388608";

/// Nobody was told: the log was silent, and whoever wanted a topic heard nothing but that the time was over.
#[test]
fn produce_goes_on_and_the_way_out_is_said_when_etcd_has_no_space_left() {
    if Command::new("etcdctl").arg("version").output().is_err() {
        return println!("skipped: no etcdctl here to make room with (apt-get install etcd-client)");
    }
    let Some(mut rig) = Rig::start(3, "") else { return };
    rig.create_topic("orders", 3, 3, &[("min.insync.replicas", "2")]);
    let load = Load::start(&rig, "orders", 3, 2);
    rig.etcd().kill();
    rig.etcd().restart_with(QUOTA);
    let url = rig.etcd().url();
    fill(&url);
    load.await_more(&rig, 50);
    let spec = TopicSpec { name: "later".to_owned(), partitions: Some(1), replicas: Some(3), settings: Vec::new() };
    rig.client().create_topic(&spec, false).expect_err("nothing can be written");
    rig.until("the log says what to do", || rig.logs().contains("etcdctl alarm disarm"));
    let is_told = |rig: &Rig| rig.millrace(&["cluster", "status"]).contains("etcdctl alarm disarm");
    rig.until("the status says what to do", || is_told(&rig));
    load.await_more(&rig, 50);

    let etcdctl = |arguments: &[&str]| {
        let mut command = Command::new("etcdctl");
        let output = command.env("ETCDCTL_API", "3").args(["--endpoints", &url]).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    etcdctl(&["del", "--prefix", "/millrace/filler/"]);
    let status = etcdctl(&["endpoint", "status", "--write-out", "json"]);
    let (_, revision) = status.split_once("\"revision\":").expect("a revision");
    let revision: String = revision.chars().take_while(char::is_ascii_digit).collect();
    etcdctl(&["compact", &revision]);
    etcdctl(&["defrag"]);
    etcdctl(&["alarm", "disarm"]);
    rig.until("topics are created again", || match rig.client().create_topic(&spec, false) {
        Ok(()) => true,
        Err(error) => error.code() == Some(36), // an attempt that seemed to fail had been taken
    });
    rig.until("the log says that it is over", || rig.logs().contains("etcd is back"));
    rig.until("the status does not say it any more", || !is_told(&rig));
    let produced = load.finish();
    rig.await_in_sync("orders", 3);
    rig.verify("orders", produced.run, &produced.acknowledged);
}

/// Uses its space up with keys of somebody else.
fn fill(url: &str) {
    let options = EtcdOptions {
        endpoints: vec![url.to_owned()],
        cluster: "filler".to_owned(),
        timeout: Duration::from_secs(10),
        tls: EtcdTls::default(),
        user: None,
    };
    let mut etcd = Etcd::new(&options).unwrap();
    for number in 0..1000 {
        match etcd.transact(&Transaction::new().put(format!("{number}"), vec![7; 500_000])) {
            Ok(_) => {}
            Err(StoreError::Full(_)) => return,
            Err(error) => panic!("{error}"),
        }
    }
    panic!("it takes everything");
}
