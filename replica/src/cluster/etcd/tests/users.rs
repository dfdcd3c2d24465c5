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
    // shorter, one would be forgotten on its way where the machine is busy
    let Some(mut server) = guarded(&["--auth-token-ttl", "3"]) else { return };
    let mut root = as_root(&server, "secret");
    let put = |root: &mut Etcd, key: &str| root.transact(&Transaction::new().put(key.to_owned(), vec![])).unwrap();
    put(&mut root, "a");
    server.restart();
    put(&mut root, "b");
    wait_until_forgotten(&server, &root);
    put(&mut root, "c");
    wait_until_forgotten(&server, &root);
    assert_eq!(root.range("", None, 0, 10).unwrap().entries.len(), 3);
    server.restart();
    assert!(root.watch(1).is_ok());
}

/// Waits until the token that it has is none any more.
fn wait_until_forgotten(server: &Server, user: &Etcd) {
    let mut other = Etcd::new(&server.options()).unwrap();
    other.caller.token = user.caller.token.clone();
    for _ in 0..15 {
        // whoever shows one makes it last again: it is left alone for longer than that
        thread::sleep(Duration::from_secs(4));
        if matches!(other.range("", None, 0, 1), Err(StoreError::Refused(_))) {
            return;
        }
    }
    panic!("the token stays");
}
