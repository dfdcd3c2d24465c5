//! Users, passwords and tokens.

use super::*;
use crate::cluster::etcd::messages::AuthenticateRequest;

/// An etcd that asks who one is, and knows one: `root`, whose password is `secret`.
fn guarded(arguments: &[&str]) -> Option<Server> {
    let server = Server::start(arguments)?;
    let mut etcd = Etcd::new(&server.options()).unwrap();
    // a user and its role are written as a user and its password are
    let pair = |name: &str, other: &str| AuthenticateRequest { name: name.to_owned(), password: other.to_owned() };
    let caller = &mut etcd.caller;
    caller.call::<Empty>("/etcdserverpb.Auth/UserAdd", &pair("root", "secret"), Repeat::Unsent).unwrap();
    // which role there is before users are asked for
    let added = caller.call::<Empty>("/etcdserverpb.Auth/RoleAdd", &pair("root", ""), Repeat::Unsent);
    assert!(matches!(added, Ok(_) | Err(StoreError::Refused(_))), "{added:?}");
    caller.call::<Empty>("/etcdserverpb.Auth/UserGrantRole", &pair("root", "root"), Repeat::Unsent).unwrap();
    caller.call::<Empty>("/etcdserverpb.Auth/AuthEnable", &Empty {}, Repeat::Unsent).unwrap();
    Some(server)
}

fn as_root(server: &Server, password: &str) -> Etcd {
    let user = Some(("root".to_owned(), password.to_owned()));
    Etcd::new(&EtcdOptions { user, ..server.options() }).unwrap()
}

#[test]
fn users_and_passwords() {
    let Some(server) = guarded(&[]) else { return };
    let mut nobody = Etcd::new(&server.options()).unwrap();
    assert!(matches!(nobody.range("", None, 0, 1), Err(StoreError::Refused(_))));
    assert!(matches!(as_root(&server, "wrong").range("", None, 0, 1), Err(StoreError::Refused(_))));
    let mut root = as_root(&server, "secret");
    root.transact(&Transaction::new().put("a".to_owned(), vec![])).unwrap();
    assert_eq!(root.range("", None, 0, 10).unwrap().entries.len(), 1);
    assert!(root.watch(1).is_ok());
}

/// etcd forgets its tokens when it ends, and after a while. What was refused for one was not done, and is asked for again.
#[test]
fn a_token_that_is_forgotten_is_renewed() {
    let Some(mut server) = guarded(&["--auth-token-ttl", "1"]) else { return };
    let mut root = as_root(&server, "secret");
    let put = |root: &mut Etcd, key: &str| root.transact(&Transaction::new().put(key.to_owned(), vec![])).unwrap();
    put(&mut root, "a");
    server.restart();
    put(&mut root, "b");
    thread::sleep(Duration::from_secs(4));
    put(&mut root, "c");
    thread::sleep(Duration::from_secs(4));
    assert_eq!(root.range("", None, 0, 10).unwrap().entries.len(), 3);
    server.restart();
    assert!(root.watch(1).is_ok());
}
