//! Who may do what, and how much: nobody is known by name yet, and that is what clients are told.

pub(crate) mod acls;
pub(crate) mod describe_client_quotas;
pub(crate) mod describe_user_scram_credentials;
