"""When, how often and on which machine: rules of time, tickets, the bus. Imports none of ours."""
