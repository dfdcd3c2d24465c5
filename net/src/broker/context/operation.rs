//! What may be allowed: Kafka's operations, and the types of resources that they are done on.

/// An operation of ACLs, with Kafka's number (AclOperation).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(i8)]
pub(crate) enum Operation {
    Read = 3,
    Write = 4,
    Create = 5,
    Delete = 6,
    Alter = 7,
    Describe = 8,
    ClusterAction = 9,
    DescribeConfigs = 10,
    AlterConfigs = 11,
    IdempotentWrite = 12,
}

/// A type of resources, with Kafka's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(i8)]
pub(crate) enum ResourceType {
    Topic = 2,
    Group = 3,
    Cluster = 4,
    TransactionalId = 5,
}

/// One thing that is asked for: an operation on a resource of that type.
pub(crate) type Check = (ResourceType, Operation);

/// How an API is kept from those who may not use it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Authorization {
    /// Its handler asks for these, of what a request is about.
    Asks(&'static [Check]),
    /// Nobody is kept from it, for that reason.
    Open(&'static str),
}

impl Authorization {
    /// Why a handler must not ask for that, if so.
    pub(crate) fn objection(self, check: Check) -> Option<&'static str> {
        match self {
            Authorization::Asks(checks) if checks.contains(&check) => None,
            Authorization::Asks(_) => Some("its entry in the table does not name it"),
            Authorization::Open(reason) => Some(reason),
        }
    }
}

impl ResourceType {
    /// The operations that there are on a resource.
    pub(crate) fn operations(self) -> &'static [Operation] {
        use Operation::*;
        match self {
            ResourceType::Topic => &[Read, Write, Create, Delete, Alter, Describe, DescribeConfigs, AlterConfigs],
            ResourceType::Group => &[Read, Delete, Describe, DescribeConfigs, AlterConfigs],
            ResourceType::TransactionalId => &[Describe, Write],
            ResourceType::Cluster => {
                &[Create, Alter, Describe, ClusterAction, DescribeConfigs, AlterConfigs, IdempotentWrite]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_of_operations_are_kafka_s() {
        let bits = |of: ResourceType| of.operations().iter().fold(0, |bits, operation| bits | 1 << *operation as i32);
        assert_eq!([ResourceType::Topic, ResourceType::Group, ResourceType::Cluster].map(bits), [3576, 3400, 8096]);
    }
}
