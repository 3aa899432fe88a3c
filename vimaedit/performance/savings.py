"""What the engine saves itself, and can be made to do after all, to see what each saving brings."""

THIRD_ROW = "no row for an unguided source"  # its unconditional one
ONE_BRANCH = "rows of a branch attended once before any text"
ONE_PROJECTION = "keys and values made once"
SAVINGS = (THIRD_ROW, ONE_BRANCH, ONE_PROJECTION)
