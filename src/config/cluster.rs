//! What a node is told of its cluster: its name, the etcd that keeps what all nodes agree on, and where other nodes reach
//! this one. Pure; names are looked up when the node starts.

use std::{collections::BTreeMap, path::PathBuf};

use super::{
    Advertise, ServeOptions,
    address::HostPort,
    etcd::{EtcdMember, EtcdPlace},
    listener::Listener,
};

/// A node's place in a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClusterConfig {
    /// Letters, digits, '.', '_' and '-': a part of the keys in etcd.
    pub(crate) name: String,
    pub(crate) etcd: EtcdConfig,
    /// Where the channel between nodes listens.
    pub(crate) peer_listen: HostPort,
    /// What other nodes are told; `None`: as with listeners, the address, or this machine's name for a wildcard.
    pub(crate) peer_advertised: Option<HostPort>,
    pub(crate) rack: Option<String>,
    /// By Kafka's name; checked by the wire's own rules.
    pub(crate) settings: BTreeMap<String, String>,
}

/// Where etcd is, and as whom it is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EtcdConfig {
    /// At least one, without a slash at the end.
    pub(crate) urls: Vec<String>,
    /// Whom to run as a child, if this node is to.
    pub(crate) managed: Option<ManagedEtcd>,
    /// The two nodes of which one keeps what an etcd would, if there is none.
    pub(crate) mirror: Option<Mirror>,
    pub(crate) ca: Option<PathBuf>,
    /// Certificate and key; both or none.
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
    /// User and the file that holds the password; both or none.
    pub(crate) login: Option<(String, PathBuf)>,
}

/// An etcd that runs as a child of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ManagedEtcd {
    /// All of them, this node's among them.
    pub(crate) members: Vec<EtcdMember>,
}

/// Two nodes without an etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mirror {
    /// Where this node is reached by the other, and where that one is.
    pub(crate) own: EtcdMember,
    pub(crate) other: EtcdMember,
    /// Who leads when nobody ever did.
    pub(crate) first: i32,
    pub(crate) without_follower: WithoutFollower,
}

/// What the leader of two nodes does while it has no follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WithoutFollower {
    /// It acknowledges what it alone has.
    Continue,
    /// It refuses what wants to be acknowledged by all.
    Stop,
}

impl WithoutFollower {
    fn min_in_sync(self) -> &'static str {
        match self {
            Self::Continue => "1",
            Self::Stop => "2",
        }
    }
}

impl Mirror {
    /// min.insync.replicas of topics that say nothing.
    pub(crate) fn min_in_sync(&self) -> &'static str {
        self.without_follower.min_in_sync()
    }
}

/// What coordinators' topics have in place of that: they go on alone when other topics do.
const MIN_IN_SYNC_OF_COORDINATORS: [&str; 2] =
    ["share.coordinator.state.topic.min.isr", "transaction.state.log.min.isr"];

/// Kafka's style of name for that.
const WITHOUT_FOLLOWER: &str = "mirror.without.follower";

/// How far the channel's port is from that of the first listener, when nothing is said.
const PEER_PORT_DISTANCE: u16 = 100;
/// Longest name of a cluster.
const NAME_LENGTH_MAX: usize = 64;

/// Makes a node's place in a cluster of what was said, if it shall be in one.
pub(super) fn resolve(
    options: &ServeOptions,
    listeners: &[Listener],
    problems: &mut Vec<String>,
) -> Option<ClusterConfig> {
    let Some(name) = &options.cluster else {
        problems.extend(said_of_clusters(options).map(|option| format!("{option} needs --cluster NAME")));
        return None;
    };
    if name.is_empty() || name.len() > NAME_LENGTH_MAX || !name.bytes().all(is_legal) {
        problems.push(format!(
            "--cluster '{name}': letters, digits, '.', '_' and '-', from 1 to {NAME_LENGTH_MAX} of them"
        ));
    }
    if options.node_id.is_none() {
        problems.push("--cluster needs --node-id: each node of a cluster has its own".to_owned());
    }
    if options.advertise == Some(Advertise::Shard) {
        problems.push(
            "--advertise shard: not in a cluster, where replicas are nodes; leave it out, connections move to the shard \
             of their partitions by themselves"
                .to_owned(),
        );
    }
    let mut settings = settings(options, problems);
    let etcd = etcd(options, &mut settings, problems);
    let first = listeners.first().and_then(|listener| listener.addresses.first());
    let peer_listen = options.peer_listen.clone().or_else(|| beside(first?, problems))?;
    check_advertised(options.peer_advertise.as_ref(), problems);
    Some(ClusterConfig {
        name: name.clone(),
        etcd,
        peer_listen,
        peer_advertised: options.peer_advertise.clone(),
        rack: options.rack.clone(),
        settings,
    })
}

fn is_legal(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')
}

/// Options that mean nothing outside a cluster, of those that were given.
fn said_of_clusters(options: &ServeOptions) -> impl Iterator<Item = &'static str> {
    let said = [
        ("--etcd", options.etcd.is_some()),
        ("--etcd-members", options.etcd_members.is_some()),
        ("--etcd-ca", options.etcd_ca.is_some()),
        ("--etcd-cert", options.etcd_cert.is_some()),
        ("--etcd-key", options.etcd_key.is_some()),
        ("--etcd-user", options.etcd_user.is_some()),
        ("--etcd-password-file", options.etcd_password_file.is_some()),
        ("--peer-listen", options.peer_listen.is_some()),
        ("--peer-advertise", options.peer_advertise.is_some()),
        ("--rack", options.rack.is_some()),
        ("--replication-setting", !options.replication_setting.is_empty()),
    ];
    said.into_iter().filter(|(_, is_said)| *is_said).map(|(name, _)| name)
}

/// Kafka's name of what `--rack` says.
const RACK: &str = "broker.rack";

fn settings(options: &ServeOptions, problems: &mut Vec<String>) -> BTreeMap<String, String> {
    let given = options.replication_setting.iter();
    let mut settings: BTreeMap<_, _> = given.map(|setting| (setting.key.clone(), setting.value.clone())).collect();
    if settings.contains_key(RACK) {
        problems.push(format!("--replication-setting {RACK}: give --rack"));
    }
    for name in settings.keys().filter(|name| !millrace_net::is_replication_setting(name)) {
        problems.push(format!("--replication-setting {name}: no such setting"));
    }
    if let Err(problem) = millrace_net::check_replication_settings(&settings) {
        problems.push(format!("--replication-setting {problem}"));
    }
    settings.extend(options.rack.clone().map(|rack| (RACK.to_owned(), rack)));
    settings
}

/// The channel's address beside the first listener's.
fn beside(listen: &HostPort, problems: &mut Vec<String>) -> Option<HostPort> {
    let port = match listen.port {
        0 => Some(0),
        port => port.checked_add(PEER_PORT_DISTANCE),
    };
    if port.is_none() {
        problems.push(format!("--peer-listen: say where, as no port is {PEER_PORT_DISTANCE} above that of {listen}"));
    }
    Some(HostPort { port: port?, ..listen.clone() })
}

fn check_advertised(advertised: Option<&HostPort>, problems: &mut Vec<String>) {
    let Some(address) = advertised else { return };
    if address.is_wildcard() {
        problems.push(format!("--peer-advertise {address}: no node can connect to a meta-address; name this host"));
    } else if address.port == 0 {
        problems.push(format!("--peer-advertise {address}: needs the port that other nodes connect to"));
    }
}

fn etcd(options: &ServeOptions, settings: &mut BTreeMap<String, String>, problems: &mut Vec<String>) -> EtcdConfig {
    let places = options.etcd.as_deref().unwrap_or_default();
    let is_managed = places.contains(&EtcdPlace::Managed);
    let is_mirror = places.contains(&EtcdPlace::Mirror);
    if places.is_empty() {
        problems.push("--cluster needs --etcd: where the cluster's etcd is, or managed".to_owned());
    }
    if (is_managed || is_mirror) && places.len() > 1 {
        problems.push("--etcd: either addresses or managed or mirror".to_owned());
    }
    let mirror = is_mirror.then(|| mirror(options, settings, problems)).flatten();
    if !is_mirror && settings.contains_key(WITHOUT_FOLLOWER) {
        problems.push(format!("--replication-setting {WITHOUT_FOLLOWER} needs --etcd mirror"));
    }
    let managed = is_managed.then(|| managed(options, problems)).flatten();
    if !is_managed && !is_mirror && options.etcd_members.is_some() {
        problems.push("--etcd-members needs --etcd managed or mirror".to_owned());
    }
    let urls = match &managed {
        Some(managed) => managed_urls(managed, options.node_id),
        None => places
            .iter()
            .filter_map(|place| match place {
                EtcdPlace::Url(url) => Some(url.clone()),
                EtcdPlace::Managed | EtcdPlace::Mirror => None,
            })
            .collect(),
    };
    check_security(options, &urls, is_managed || is_mirror, problems);
    EtcdConfig {
        urls,
        managed,
        mirror,
        ca: options.etcd_ca.clone(),
        identity: options.etcd_cert.clone().zip(options.etcd_key.clone()),
        login: options.etcd_user.clone().zip(options.etcd_password_file.clone()),
    }
}

/// This node's own etcd first: the others are for when it is away.
fn managed_urls(managed: &ManagedEtcd, own: Option<i32>) -> Vec<String> {
    let (own, others): (Vec<_>, Vec<_>) = managed.members.iter().partition(|member| Some(member.node_id) == own);
    own.into_iter().chain(others).map(|member| format!("http://{}", member.client())).collect()
}

/// An etcd of two members is worse than one: both are needed.
const MEMBERS: [usize; 3] = [1, 3, 5];

fn managed(options: &ServeOptions, problems: &mut Vec<String>) -> Option<ManagedEtcd> {
    let Some(members) = options.etcd_members.clone() else {
        problems.push(
            "--etcd managed needs --etcd-members, the nodes that run one, as in 1=10.0.0.1,2=10.0.0.2,3=10.0.0.3"
                .to_owned(),
        );
        return None;
    };
    if !MEMBERS.contains(&members.len()) {
        let count = members.len();
        problems.push(format!("--etcd-members: {count} of them; 3 bear the loss of one, 5 of two, 1 of none"));
    }
    for (at, member) in members.iter().enumerate() {
        let id = member.node_id;
        if members[..at].iter().any(|other| other.node_id == id) {
            problems.push(format!("--etcd-members: node {id} is given twice"));
        }
    }
    if let Some(id) = options.node_id
        && members.iter().all(|member| member.node_id != id)
    {
        let own = members.iter().map(|member| format!("http://{}", member.client())).collect::<Vec<_>>().join(",");
        problems.push(format!("--etcd managed: node {id} is none of --etcd-members; give it --etcd {own}"));
    }
    Some(ManagedEtcd { members })
}

/// The two nodes, and what their topics are given for it.
fn mirror(
    options: &ServeOptions,
    settings: &mut BTreeMap<String, String>,
    problems: &mut Vec<String>,
) -> Option<Mirror> {
    let members = options.etcd_members.clone().unwrap_or_default();
    let [first, second] = members.as_slice() else {
        problems.push(
            "--etcd mirror needs --etcd-members, the two nodes and where they find each other, as in 1=10.0.0.1,2=10.0.0.2"
                .to_owned(),
        );
        return None;
    };
    let without_follower = match settings.get(WITHOUT_FOLLOWER).map(String::as_str) {
        Some("continue") => WithoutFollower::Continue,
        Some("stop") => WithoutFollower::Stop,
        _ => {
            problems.push(format!(
                "--etcd mirror needs --replication-setting {WITHOUT_FOLLOWER}=stop, which loses nothing and takes nothing from \
                 acks=all producers while one node is away, or =continue, which goes on and may lose what came meanwhile"
            ));
            return None;
        }
    };
    settings.entry("default.replication.factor".to_owned()).or_insert_with(|| "2".to_owned());
    for name in MIN_IN_SYNC_OF_COORDINATORS {
        settings.entry(name.to_owned()).or_insert_with(|| without_follower.min_in_sync().to_owned());
    }
    let (own, other) = match options.node_id {
        Some(id) if id == first.node_id && id != second.node_id => (first, second),
        Some(id) if id == second.node_id && id != first.node_id => (second, first),
        _ => {
            problems.push("--etcd mirror: --node-id has to be one of the two in --etcd-members".to_owned());
            return None;
        }
    };
    Some(Mirror { own: own.clone(), other: other.clone(), first: first.node_id, without_follower })
}

fn check_security(options: &ServeOptions, urls: &[String], is_managed: bool, problems: &mut Vec<String>) {
    let has_tls = [&options.etcd_ca, &options.etcd_cert, &options.etcd_key].iter().any(|path| path.is_some());
    if options.etcd_cert.is_some() != options.etcd_key.is_some() {
        problems.push("--etcd-cert and --etcd-key go together".to_owned());
    }
    if options.etcd_user.is_some() != options.etcd_password_file.is_some() {
        problems.push("--etcd-user and --etcd-password-file go together".to_owned());
    }
    if is_managed && (has_tls || options.etcd_user.is_some()) {
        problems
            .push("--etcd managed and mirror have neither TLS nor users: run an etcd of your own for more".to_owned());
    } else if has_tls && urls.iter().any(|url| url.starts_with("http://")) {
        problems.push("--etcd-ca, --etcd-cert and --etcd-key are for https:// addresses of --etcd".to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Machine};

    fn options() -> ServeOptions {
        ServeOptions {
            cluster: Some("c1".to_owned()),
            etcd: Some(vec!["127.0.0.1:2379".parse().unwrap()]),
            node_id: Some(2),
            ..ServeOptions::default()
        }
    }

    fn resolved(options: ServeOptions) -> Result<ClusterConfig, Vec<String>> {
        let config = Config::resolve(options, Machine { cpus: 2 }).map_err(|problems| problems.0)?;
        Ok(config.cluster.expect("a cluster was named"))
    }

    #[test]
    fn a_name_and_an_etcd_make_a_cluster() {
        let cluster = resolved(options()).unwrap();
        assert_eq!(cluster.etcd.urls, ["http://127.0.0.1:2379"]);
        assert_eq!(cluster.peer_listen.to_string(), "127.0.0.1:9192");
        assert_eq!(Config::resolve(ServeOptions::default(), Machine { cpus: 2 }).unwrap().cluster, None);
    }

    #[test]
    fn a_managed_etcd_is_asked_at_its_own_node_first() {
        let members = "1=a,2=b:3379,3=[::1]:2379".split(',').map(|text| text.parse().unwrap()).collect();
        let cluster =
            resolved(ServeOptions { etcd: Some(vec![EtcdPlace::Managed]), etcd_members: Some(members), ..options() });
        let etcd = cluster.unwrap().etcd;
        assert_eq!(etcd.urls, ["http://b:3379", "http://a:2379", "http://[::1]:2379"]);
        assert_eq!(etcd.managed.unwrap().members[1].peer().to_string(), "b:3380");
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_reason() {
        let members = |text: &str| Some(text.split(',').map(|text| text.parse().unwrap()).collect());
        let managed = || ServeOptions { etcd: Some(vec![EtcdPlace::Managed]), ..options() };
        let setting = |text: &str| ServeOptions { replication_setting: vec![text.parse().unwrap()], ..options() };
        let path = || Some(PathBuf::from("x"));
        for (options, reason) in [
            (ServeOptions { cluster: None, node_id: None, ..options() }, "--etcd needs --cluster NAME"),
            (ServeOptions { rack: Some("r".to_owned()), ..ServeOptions::default() }, "--rack needs --cluster"),
            (setting("default.replication.factor=0"), "default.replication.factor"),
            (setting("colour=red"), "no such setting"),
            (setting("broker.rack=a"), "give --rack"),
            (ServeOptions { etcd: None, ..options() }, "--cluster needs --etcd"),
            (ServeOptions { node_id: None, ..options() }, "--cluster needs --node-id"),
            (ServeOptions { cluster: Some("a/b".to_owned()), ..options() }, "--cluster 'a/b'"),
            (ServeOptions { advertise: Some(Advertise::Shard), ..options() }, "--advertise shard: not in a cluster"),
            (ServeOptions { peer_advertise: "0.0.0.0:1".parse().ok(), ..options() }, "no node can connect"),
            (ServeOptions { peer_advertise: "h:0".parse().ok(), ..options() }, "needs the port"),
            (ServeOptions { peer_listen: "127.0.0.1:9092".parse().ok(), ..options() }, "--peer-listen 127.0.0.1:9092"),
            (managed(), "--etcd managed needs --etcd-members"),
            (ServeOptions { etcd_members: members("1=a,2=b"), ..managed() }, "3 bear the loss of one"),
            (ServeOptions { etcd_members: members("1=a,2=b,2=c"), ..managed() }, "node 2 is given twice"),
            (ServeOptions { etcd_members: members("1=a,3=b,4=c"), ..managed() }, "give it --etcd http://a:2379,"),
            (ServeOptions { etcd_members: members("2=a"), ..options() }, "needs --etcd managed or mirror"),
            (ServeOptions { etcd_cert: path(), ..options() }, "go together"),
            (ServeOptions { etcd_user: Some("u".to_owned()), ..options() }, "go together"),
            (ServeOptions { etcd_ca: path(), ..options() }, "are for https://"),
        ] {
            let found = resolved(options).unwrap_err();
            assert!(found[0].contains(reason), "{reason}: {found:?}");
        }
    }

    #[test]
    fn two_nodes_without_an_etcd_say_what_one_does_alone() {
        let members = |text: &str| Some(text.split(',').map(|text| text.parse().unwrap()).collect());
        let mirror = |members, setting: &str| ServeOptions {
            etcd: Some(vec![EtcdPlace::Mirror]),
            etcd_members: members,
            replication_setting: setting
                .split(',')
                .filter(|text| !text.is_empty())
                .map(|t| t.parse().unwrap())
                .collect(),
            ..options()
        };
        let stop = "mirror.without.follower=stop";
        let cluster = resolved(mirror(members("1=a,2=b"), stop)).unwrap();
        let found = cluster.etcd.mirror.clone().unwrap();
        assert_eq!((found.own.node_id, found.other.node_id, found.first, found.min_in_sync()), (2, 1, 1, "2"));
        assert_eq!(cluster.settings["default.replication.factor"], "2");
        let alone = resolved(mirror(members("1=a,2=b"), "mirror.without.follower=continue")).unwrap();
        let own = "transaction.state.log.min.isr=2";
        let said = resolved(mirror(members("1=a,2=b"), &format!("mirror.without.follower=continue,{own}"))).unwrap();
        let of_transactions = [cluster, alone, said].map(|of| of.settings["transaction.state.log.min.isr"].clone());
        assert_eq!(of_transactions, ["2", "1", "2"]);
        for (options, reason) in [
            (mirror(members("1=a,2=b"), ""), "stop, which loses nothing"),
            (mirror(members("1=a,2=b,3=c"), stop), "the two nodes"),
            (mirror(members("1=a,3=b"), stop), "one of the two"),
            (mirror(None, stop), "the two nodes"),
        ] {
            let found = resolved(options).unwrap_err();
            assert!(found[0].contains(reason), "{reason}: {found:?}");
        }
        let elsewhere = ServeOptions { replication_setting: vec![stop.parse().unwrap()], ..options() };
        assert!(resolved(elsewhere).unwrap_err()[0].contains("needs --etcd mirror"));
    }

    #[test]
    fn members_and_addresses_are_read_or_refused() {
        let member: EtcdMember = "7=10.0.0.1".parse().unwrap();
        assert_eq!((member.node_id, member.client().to_string()), (7, "10.0.0.1:2379".to_owned()));
        for text in ["10.0.0.1", "x=h", "-1=h", "1=", "1=h:0", "1=h:65535"] {
            text.parse::<EtcdMember>().unwrap_err();
        }
        assert_eq!("https://h:1/".parse(), Ok(EtcdPlace::Url("https://h:1".to_owned())));
        assert_eq!("managed".parse(), Ok(EtcdPlace::Managed));
        for text in ["h", "ftp://h:1", "https://h"] {
            text.parse::<EtcdPlace>().unwrap_err();
        }
    }
}
